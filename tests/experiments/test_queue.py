from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_experiments import DDTB, FLOAT, SIMULATED, Place, shrunk, write_experiment

import srquant
from srquant.errors import UserError
from srquant.experiments import Outcome, Places, find_entries, read_results, run_queue, standing
from srquant.experiments.starting import make_objective, start_network
from srquant.files import sha256

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """A float network, one that is quantised from it, and a simulation."""
    folder = tmp_path / "queue"
    write_experiment(folder / "010-float.toml", FLOAT)
    write_experiment(folder / "020-ddtb.toml", DDTB, weights="run:010-float")
    write_experiment(folder / "030-official.toml", SIMULATED, weights="run:010-float")
    (folder / "README.md").write_text("no experiment")
    return folder


def places(runs: Path, place: Place) -> Places:
    return Places(runs, (place.pictures,), place.validation, (place.benchmark,))


def sitting(queue: Path, where: Places, **options: Any) -> list[Outcome]:
    return list(run_queue(find_entries(queue), where, accelerator="cpu", **options))


def test_a_queue_is_done_in_the_order_of_its_names(queue: Path, tmp_path: Path, place: Place) -> None:
    where = places(tmp_path / "runs", place)
    outcomes = sitting(queue, where)
    names = ["010-float", "020-ddtb", "030-official"]
    assert [(one.name, one.status) for one in outcomes] == [(name, "finished") for name in names]
    rows = read_results(where.results)
    assert [row["experiment"] for row in rows] == names
    assert [row["method"] for row in rows] == ["float", "ddtb", "ddtb"]
    assert [row["engine"] for row in rows] == ["torch", "onnxruntime", "simulate"]
    assert [(row["weight_bits"], row["activation_bits"]) for row in rows] == [("32", "32"), ("2", "2"), ("2", "2")]
    assert [row["rest"] for row in rows] == ["float", "int8", "float"]
    assert [(row["steps"], row["batch"], row["patch"]) for row in rows] == [("6", "2", "8")] * 3
    assert rows[1]["sha256"] == sha256(where.runs / "020-ddtb" / "quantized.safetensors")
    assert all("Y (BT.601" in row["protocol"] for row in rows)
    measured = srquant.evaluate(where.runs / "020-ddtb" / "quantized.safetensors", place.benchmark, "reference")
    score = measured.datasets["SetA"]
    assert (rows[1]["SetA_psnr"], rows[1]["SetA_ssim"]) == (f"{score.psnr:.4f}", f"{score.ssim:.4f}")
    assert len({row["SetA_psnr"] for row in rows}) == 3
    assert sitting(queue, where) == [], "nothing is left to do"
    assert read_results(where.results) == rows


def test_a_queue_in_many_sittings_gives_the_same_table(queue: Path, tmp_path: Path, place: Place) -> None:
    whole, parts = places(tmp_path / "whole", place), places(tmp_path / "parts", place)
    sitting(queue, whole)
    sittings = []
    while outcomes := sitting(queue, parts, time_budget=0):
        assert len(sittings) < 40
        sittings.append(outcomes[-1])
    assert sum(one.status == "finished" for one in sittings) == 3
    assert sum(one.status == "out of time" for one in sittings) >= 10
    assert sittings[0] == Outcome("010-float", "out of time", "step 1 of 6")
    rows = [read_results(where.results) for where in (whole, parts)]
    for row in rows[0] + rows[1]:
        row.pop("finished_at")
        if row["engine"] == "simulate":
            row.pop("sha256")  # a checkpoint also holds how long it took
    assert rows[0] == rows[1]


def test_a_set_is_scored_once(queue: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    where = places(tmp_path / "runs", place)
    sitting(queue, where)
    where.results.unlink()
    kept = where.runs / "010-float" / "scores" / "SetA.json"
    assert json.loads(kept.read_text())["sha256"] == sha256(where.runs / "010-float" / "network.safetensors")

    def again(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("srquant.experiments.queue.score", again)
    assert len(sitting(queue, where)) == 3
    assert len(read_results(where.results)) == 3


def test_a_network_that_was_left_elsewhere_is_made_again(queue: Path, tmp_path: Path, place: Place) -> None:
    where = places(tmp_path / "runs", place)
    list(run_queue(find_entries(queue)[:1], where, accelerator="cpu"))
    network = where.runs / "010-float" / "network.safetensors"
    content = network.read_bytes()
    network.unlink()
    outcomes = sitting(queue, where)
    assert [(one.name, one.status) for one in outcomes] == [
        ("010-float", "finished"),
        ("020-ddtb", "finished"),
        ("030-official", "finished"),
    ]
    assert network.read_bytes() == content
    network.unlink()
    assert sitting(queue, where) == [], "nothing needs it any more"


def test_the_engine_is_the_one_that_was_asked_for(queue: Path, tmp_path: Path, place: Place) -> None:
    where = places(tmp_path / "runs", place)
    sitting(queue, where)
    automatic = read_results(where.results)
    where.results.unlink()
    sitting(queue, where, engine="openvino")
    rows = read_results(where.results)
    assert [row["engine"] for row in rows] == ["torch", "openvino", "simulate"]
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in automatic]
    kept = json.loads((where.runs / "020-ddtb" / "scores" / "SetA.json").read_text())
    assert kept["engine"] == "openvino"


def test_how_the_experiments_stand(queue: Path, tmp_path: Path, place: Place) -> None:
    where, entries = places(tmp_path / "runs", place), find_entries(queue)
    assert standing(entries, where.runs) == {
        "010-float": "next",
        "020-ddtb": "waits for 010-float",
        "030-official": "waits for 010-float",
    }
    sitting(queue, where, time_budget=0)
    assert standing(entries, where.runs)["010-float"] == "under way"
    for _ in run_queue(entries[:1], where, accelerator="cpu"):
        pass
    assert list(standing(entries, where.runs).values()) == ["finished", "next", "next"]


def test_one_that_fails_does_not_stop_the_others(queue: Path, tmp_path: Path, place: Place) -> None:
    write_experiment(queue / "015-wrong.toml", FLOAT, training={"patch": 400})
    write_experiment(queue / "016-after.toml", DDTB, weights="run:015-wrong")
    where = places(tmp_path / "runs", place)
    outcomes = {one.name: one for one in sitting(queue, where)}
    assert {name: one.status for name, one in outcomes.items()} == {
        "010-float": "finished",
        "015-wrong": "failed",
        "016-after": "failed",
        "020-ddtb": "finished",
        "030-official": "finished",
    }
    assert "patch 400" in outcomes["015-wrong"].message
    assert outcomes["016-after"].message == "it starts from '015-wrong', which is not trained yet"
    assert len(read_results(where.results)) == 3
    assert [one.name for one in sitting(queue, where)] == ["015-wrong", "016-after"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("040-a.toml", 'weights = "run:010-flot"', "earlier experiment '010-flot'; .*did you mean '010-float'"),
        ("005-a.toml", 'weights = "run:010-float"', "unknown .*earlier experiment '010-float'"),
        ("040-a.toml", "[network]\nblock = 3", "040-a.toml': unknown network key 'block'; .*did you mean 'blocks'"),
        ("040-a.toml", "[training]\nepoch = 3", "040-a.toml': unknown TrainingConfig key 'training.epoch'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_done(name: str, content: str, message: str, queue: Path) -> None:
    (queue / name).write_text('preset = "edsr-x4"\n' + content)
    with pytest.raises(UserError, match=message) as error:
        find_entries(queue)
    assert "\n" not in str(error.value)


def test_a_folder_without_experiments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no experiment \(\*.toml\) in"):
        find_entries(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder '.*missing'"):
        find_entries(tmp_path / "missing")


def test_the_queue_of_the_project() -> None:
    entries = find_entries(ROOT / "experiments")
    assert [entry.name for entry in entries][:2] == ["010-edsr-x4", "011-edsr-x2"]
    assert all(entry.experiment.method is None for entry in entries[:2])
    quantised = [entry for entry in entries if entry.experiment.method is not None]
    bits = [e.experiment.quantization.weight_bits for e in quantised if e.experiment.quantization is not None]
    assert bits[:3] == [2, 3, 4]
    floats = {entry.name: entry.experiment.network for entry in entries if entry.experiment.method is None}
    for entry in quantised:
        assert entry.starts_from is not None
        assert entry.experiment.network == floats[entry.starts_from]
    for entry in entries:
        small = shrunk(entry.experiment)
        assert make_objective(small, start_network(small)) is not None


def test_sets_of_one_name_are_refused(queue: Path, tmp_path: Path, place: Place) -> None:
    twin = tmp_path / "elsewhere" / place.benchmark.name
    places = Places(tmp_path / "runs", (place.pictures,), place.validation, (place.benchmark, twin))
    with pytest.raises(UserError, match="two benchmark sets have the same name"):
        list(run_queue(find_entries(queue), places))


def test_a_crash_fails_one_experiment_and_not_the_queue(
    queue: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nwhile trying")

    monkeypatch.setattr("srquant.experiments.queue.train", out_of_memory)
    outcomes = list(run_queue(find_entries(queue), Places(tmp_path / "runs", (place.pictures,))))
    assert [one.status for one in outcomes] == ["failed"] * len(find_entries(queue))
    assert "out of memory while trying" in outcomes[0].message
