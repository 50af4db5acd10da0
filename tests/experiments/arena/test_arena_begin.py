from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_arena import ARENA, ring, sitting
from small_experiments import Place, write_pictures

from srquant.errors import NotFiniteError, UserError
from srquant.experiments.arena import begin as arena_begin
from srquant.experiments.arena import runs as arena_runs
from srquant.experiments.arena.begin import begin
from srquant.experiments.arena.ring import Ring
from srquant.experiments.arena.table import table
from srquant.progress import Silent
from srquant.training import load_checkpoint
from srquant.training.session import own_folder

CALIBRATED, _, PAMS = ARENA["entry"]
SMALL: dict[str, Any] = {"arena": {"seeds": [1]}, "entry": [CALIBRATED, PAMS]}
STRICT = {**CALIBRATED, "quantization": {"ranges": "mse"}}
SLOWER = {**PAMS, "training": {"learning_rate": 1e-5}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, place: Place) -> Ring:
    """A finished arena of one seed: calibrated, and PAMS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        one = ring(tmp_path_factory.mktemp("first") / "arena", place, **SMALL)
        assert {outcome.status for outcome in sitting(one, resume=False)} == {"finished"}
    return one


def again(first: Ring, folder: Path, place: Place, **changes: Any) -> Ring:
    """The same arena in a copy of its folder, with changes."""
    shutil.copytree(first.folder, folder)
    return ring(folder, place, **{**SMALL, **changes})


def results(one: Ring) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(one.folder.glob("runs/*/result.json"))}


def settings(one: Ring) -> str:
    return (one.folder / "arena.json").read_text()


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({"arena": {"seeds": [1, 3]}}, ["calibrated-2bit-seed3", "pams-2bit-seed3"]),
        ({"arena": {"seeds": [1], "bits": [3, 2]}}, ["calibrated-3bit-seed1", "pams-3bit-seed1"]),
        ({"entry": [*SMALL["entry"], {"name": "LSQ", "method": {"name": "lsq"}}]}, ["lsq-2bit-seed1"]),
        ({"entry": [{**STRICT, "name": "mse"}, PAMS]}, ["mse-2bit-seed1"]),
    ],
    ids=["seed", "bits", "entry", "renamed"],
)
def test_an_arena_can_be_extended(
    changes: dict[str, Any], done: list[str], first: Ring, tmp_path: Path, place: Place
) -> None:
    one = again(first, tmp_path / "arena", place, **changes)
    before = results(one)
    with pytest.raises(UserError, match=r"is not finished: go on with it \(--resume\)"):
        sitting(one, resume=False)
    assert settings(one) == settings(first)
    assert [(outcome.name, outcome.status) for outcome in sitting(one)] == [(name, "finished") for name in done]
    assert results(one).items() > before.items()
    assert settings(one) != settings(first)
    assert sitting(one, resume=False) == []


def test_what_is_no_longer_asked_for_stays_and_does_not_count(first: Ring, tmp_path: Path, place: Place) -> None:
    one = again(first, tmp_path / "arena", place, entry=[PAMS])
    before = results(one)
    assert sitting(one, resume=False) == []
    assert [row.entry for row in table(one)] == ["FP32", "PAMS"]
    assert results(one) == before
    assert sitting(ring(one.folder, place, **SMALL), resume=False) == [], "and counts again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"epochs": 3}}, "another training.epochs: 2, not 3"),
        ({"quantization": {"placement": "strict"}}, "another quantization.placement: 'ddtb', not 'strict'"),
        ({"calibration": {"crop": 17}}, "another calibration.crop: 16, not 17"),
        ({"network": {"name": "edsr", "blocks": 2}}, "another network.blocks: None, not 2"),
        ({"arena": {"seeds": [1], "unequal": True}}, "another arena.unequal: False, not True"),
    ],
)
def test_an_arena_with_other_common_settings_is_refused(
    changes: dict[str, Any], message: str, first: Ring, tmp_path: Path, place: Place
) -> None:
    one = again(first, tmp_path / "arena", place, **changes)
    with pytest.raises(UserError, match=f"the arena in '.*' was begun with {message}; name another folder"):
        sitting(one)
    assert settings(one) == settings(first)


def test_an_arena_on_other_pictures_is_refused(first: Ring, tmp_path: Path, place: Place) -> None:
    other = replace(place, pictures=write_pictures(tmp_path / "others", 2, seed=7))
    with pytest.raises(UserError, match="was begun with other training pictures; name another folder"):
        sitting(again(first, tmp_path / "arena", other))


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_settings_that_cannot_be_read_are_named(content: str, first: Ring, tmp_path: Path, place: Place) -> None:
    one = again(first, tmp_path / "arena", place)
    (one.folder / "arena.json").write_text(content)
    with pytest.raises(UserError, match=r"arena\.json' cannot be read"):
        sitting(one)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, place: Place) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty and holds no arena"):
        sitting(ring(tmp_path / "full", place))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SLOWER, "another training.learning_rate: 0.0001, not 1e-05"),
        ({"name": "PAMS", "method": {"name": "lsq"}}, "another method.name: 'pams', not 'lsq'"),
        ({"name": "PAMS"}, "another method.name: 'pams', not 'post-training'"),
        ({**CALIBRATED, "method": {"name": "pams"}}, "another method.name: 'post-training', not 'pams'"),
        (STRICT, "another quantization.ranges: 'percentile', not 'mse'"),
    ],
)
def test_an_entry_that_its_run_is_not_of_is_refused(
    entry: dict[str, Any], message: str, first: Ring, tmp_path: Path, place: Place
) -> None:
    one = again(first, tmp_path / "arena", place, entry=[entry])
    before = results(one)
    run = one.folder / "runs" / f"{entry['name'].lower()}-2bit-seed1"
    with pytest.raises(UserError) as error:
        sitting(one)
    advice = "rename the entry, or remove that folder"
    assert str(error.value) == f"entry '{entry['name']}': its run '{run}' was begun with {message}; {advice}"
    assert (results(one), settings(one)) == (before, settings(first))
    shutil.rmtree(run)
    assert [outcome.name for outcome in sitting(one)] == [run.name]


def stopped(folder: Path, place: Place, steps: int) -> Ring:
    """An arena of PAMS alone that was stopped after some steps."""
    one = ring(folder, place, arena={"seeds": [1]}, entry=[PAMS])
    for _ in range(1 + steps):  # the float network has a sitting of its own
        sitting(one, time_budget=0)
    assert load_checkpoint(one.folder / "runs" / "pams-2bit-seed1", "last").step == steps
    return one


class Warnings(Silent):
    """Keeps what the user has to know."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def warn(self, text: str) -> None:
        self.told.append(text)


def repaired(folder: Path, place: Place) -> Ring:
    """The arena of PAMS alone with another learning rate."""
    return ring(folder, place, arena={"seeds": [1]}, entry=[SLOWER])


def failing(one: Ring, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sitting in which training ends so; where its failure would be told."""

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(arena_runs, "train", fails)
        assert [outcome.status for outcome in sitting(one)] == ["failed"]
    return one.folder / "runs" / "pams-2bit-seed1" / "failure.txt"


def test_a_run_of_one_step_is_begun_anew_for_a_repaired_entry(tmp_path: Path, place: Place) -> None:
    stopped(tmp_path / "arena", place, 1)
    one, warnings = repaired(tmp_path / "arena", place), Warnings()
    run = one.folder / "runs" / "pams-2bit-seed1"
    with pytest.raises(UserError, match=r"is not finished: go on with it \(--resume\)"):
        begin(one, resume=False)
    assert (run / "config.toml").exists()
    begin(one, resume=True, progress=warnings)
    change = "it was begun with another training.learning_rate: 0.0001, not 1e-05; it came to step 1"
    assert warnings.told == [f"removed '{run}', to begin it anew: {change}"]
    assert [outcome.status for outcome in sitting(one)] == ["finished"]
    log = (run / "log.csv").read_text()
    assert "1e-05" in log
    assert "0.0001" not in log


def test_a_run_that_came_further_is_not_begun_anew_unless_it_failed(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "arena", place, 2)
    one, warnings = repaired(tmp_path / "arena", place), Warnings()
    with pytest.raises(UserError, match=r"entry 'PAMS': its run .* was begun with another training\.learning_rate"):
        sitting(one)
    same = ring(tmp_path / "arena", place, arena={"seeds": [1]}, entry=[PAMS])
    failure = failing(same, NotFiniteError("step 3: the loss is not a finite number"), monkeypatch)
    assert failure.read_text() == "step 3: the loss is not a finite number\n"
    begin(one, resume=True, progress=warnings)
    (told,) = warnings.told
    assert told.endswith("it failed behind checkpoint 'last-00000002': step 3: the loss is not a finite number")
    assert not failure.parent.exists()
    assert [outcome.status for outcome in sitting(one)] == ["finished"]


def test_a_loss_that_is_no_number_is_a_failure(tmp_path: Path, place: Place) -> None:
    wild = {"epochs": 20, "learning_rate": 10.0, "weight_decay": 10.0}
    one = ring(tmp_path / "arena", place, arena={"seeds": [1]}, entry=[PAMS], training=wild)
    _, outcome = sitting(one)
    assert outcome.status == "failed"
    assert "the loss is not a finite number" in outcome.message
    failure = one.folder / "runs" / "pams-2bit-seed1" / "failure.txt"
    assert " ".join(failure.read_text().split()) == outcome.message


@pytest.mark.parametrize(
    "error",
    [
        UserError("another process trains in 'somewhere'"),
        UserError("cannot write a checkpoint in 'somewhere': No space left on device"),
        OSError(28, "No space left on device"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB"),
    ],
    ids=["lock", "checkpoint", "disk", "memory", "CUDA memory"],
)
def test_what_befalls_a_healthy_run_is_no_failure_of_it(
    error: Exception, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stopped(tmp_path / "arena", place, 2)
    assert not failing(one, error, monkeypatch).exists()
    with pytest.raises(UserError, match="rename the entry, or remove that folder"):
        sitting(repaired(tmp_path / "arena", place))
    assert [outcome.status for outcome in sitting(one)] == ["finished"]


def test_a_run_in_other_hands_is_left_alone(tmp_path: Path, place: Place) -> None:
    one = stopped(tmp_path / "arena", place, 1)
    run = one.folder / "runs" / "pams-2bit-seed1"
    with own_folder(run):
        (outcome,) = sitting(one)
        assert (outcome.status, outcome.message) == ("failed", f"another process trains in '{run}'")
        with pytest.raises(UserError, match="another process trains in"):
            sitting(repaired(tmp_path / "arena", place))
    assert not (run / "failure.txt").exists()
    assert load_checkpoint(run, "last").step == 1


def test_an_arena_in_other_hands_is_left_alone(tmp_path: Path, place: Place) -> None:
    one = stopped(tmp_path / "arena", place, 1)
    begin(one, resume=True)
    before = settings(one)
    with own_folder(one.folder):
        with pytest.raises(UserError, match=r"another process trains in '.*arena'"):
            begin(repaired(tmp_path / "arena", place), resume=True)
        with pytest.raises(UserError, match=r"another process trains in '.*arena'"):
            list(arena_runs.run_arena(one, accelerator="cpu"))
    assert settings(one) == before
    assert [outcome.status for outcome in sitting(one)] == ["finished"]


def test_a_removal_that_was_killed_is_made_good(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "arena", place, 1)
    one = repaired(tmp_path / "arena", place)

    def killed(folder: Path) -> None:
        (folder / "config.toml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arena_begin.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(one, resume=True)
    assert [path.name for path in one.folder.glob("runs/*pams*")] == [".old-pams-2bit-seed1"]
    assert [outcome.status for outcome in sitting(one)] == ["finished"]
    assert [path.name for path in one.folder.glob("runs/*pams*")] == ["pams-2bit-seed1"]


def test_half_a_run_is_begun_anew(tmp_path: Path, place: Place) -> None:
    one, warnings = stopped(tmp_path / "arena", place, 1), Warnings()
    (one.folder / "runs" / "pams-2bit-seed1" / "config.toml").unlink()
    begin(one, resume=True, progress=warnings)
    assert [told.split(": ")[-1] for told in warnings.told] == [
        "it was begun with settings that are missing; it came to step 1"
    ]
    assert [outcome.status for outcome in sitting(one)] == ["finished"]


def test_a_run_that_came_further_is_kept_without_its_settings(tmp_path: Path, place: Place) -> None:
    one = stopped(tmp_path / "arena", place, 2)
    run = one.folder / "runs" / "pams-2bit-seed1"
    settings = (run / "config.toml").read_bytes()
    for _ in ("begun", "finished"):
        (run / "config.toml").unlink()
        with pytest.raises(UserError, match=r"its run '.*' was begun with settings that are missing; rename"):
            begin(one, resume=True)
        (run / "config.toml").write_bytes(settings)
        sitting(one)
    assert one.finished(one.contenders[-1])


def test_a_run_that_goes_on_has_not_failed(tmp_path: Path, place: Place) -> None:
    one = stopped(tmp_path / "arena", place, 2)
    failure = one.folder / "runs" / "pams-2bit-seed1" / "failure.txt"
    failure.write_text("once\n")
    sitting(one, time_budget=0)
    assert not failure.exists()
