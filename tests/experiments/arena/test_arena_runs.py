from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import pytest
from small_arena import ARENA, RUNS, ring, sitting
from small_experiments import Place, write_pictures

import srquant
from srquant.errors import UserError
from srquant.evaluation.costs import storage_bytes
from srquant.experiments import Outcome, scoring
from srquant.experiments.arena import report as arena_report
from srquant.experiments.arena import ring as arena_ring
from srquant.experiments.arena.memory import recorded_memory
from srquant.experiments.arena.report import data, markdown, save_arena
from srquant.experiments.arena.ring import Ring
from srquant.experiments.arena.table import Row, curves, table
from srquant.files import sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, place: Place) -> Ring:
    """An arena done in one sitting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        one = ring(tmp_path_factory.mktemp("whole") / "arena", place)
        outcomes = sitting(one, resume=False)
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [(name, "finished") for name in ["fp32", *RUNS]]
    return one


def by_name(one: Ring) -> dict[str, Row]:
    return {row.entry: row for row in table(one)}


def told(one: Ring, run: str) -> dict[str, Any]:
    return json.loads((one.folder / "runs" / run / "result.json").read_text())


def scores(one: Ring, entry: str, kind: str) -> list[float]:
    """Of both seeds, from the files that scoring wrote."""
    files = [one.folder / "runs" / f"{entry}-2bit-seed{seed}" / "scores" / "SetA.json" for seed in (1, 2)]
    return [json.loads(file.read_text())["datasets"]["SetA"][kind] for file in files]


def test_the_table_holds_the_means_of_the_scores_files(whole: Ring) -> None:
    rows = by_name(whole)
    for name in ("calibrated", "DDTB", "PAMS"):
        row = rows[name]
        assert (row.bits, row.seeds, row.planned) == (2, (1, 2), 2)
        for kind, means in (("psnr", row.psnr), ("ssim", row.ssim)):
            values = scores(whole, name.lower(), kind)
            assert (means["SetA"].mean, means["SetA"].deviation) == (fmean(values), stdev(values))
        assert row.validation is not None
        values = [told(whole, f"{name.lower()}-2bit-seed{seed}")["validation_psnr"] for seed in (1, 2)]
        assert (row.validation.mean, row.validation.deviation) == (fmean(values), stdev(values))
    assert scores(whole, "pams", "psnr")[0] != scores(whole, "pams", "psnr")[1]
    float_row = rows["FP32"]
    assert (float_row.seeds, float_row.planned, float_row.psnr["SetA"].deviation) == ((), 1, None)


def test_the_best_stands_first_among_equal_bits(whole: Ring) -> None:
    rows = table(whole)
    assert rows[0].entry == "FP32"
    means = [row.psnr["SetA"].mean for row in rows[1:]]
    assert means == sorted(means, reverse=True)


def test_scores_are_those_of_the_deployed_integers(whole: Ring, place: Place) -> None:
    for name in RUNS:
        file = whole.folder / "runs" / name / "quantized.safetensors"
        assert told(whole, name)["sha256"] == sha256(file)
        kept = json.loads((whole.folder / "runs" / name / "scores" / "SetA.json").read_text())
        assert kept["engine"] == "onnxruntime"
        if "ddtb" not in name:  # gates are computed in float, in an order of the engine's own
            again = srquant.evaluate(file, place.benchmark, "reference").datasets["SetA"]
            assert kept["datasets"]["SetA"]["psnr"] == pytest.approx(again.psnr, abs=1e-9)
    assert told(whole, "fp32")["sha256"] == sha256(place.network)


def test_statistics_epochs_count_as_steps_and_not_as_gradient_steps(whole: Ring) -> None:
    rows = by_name(whole)
    learnt = {name: row.told_once("gradient_steps") for name, row in rows.items()}
    assert learnt == {"FP32": (0,), "calibrated": (0,), "DDTB": (3,), "PAMS": (6,)}
    budgets = {name: row.budget for name, row in rows.items()}
    assert budgets == {"FP32": None, "calibrated": None, "DDTB": (6, 2, 8), "PAMS": (6, 2, 8)}


def test_costs_are_those_of_the_networks(whole: Ring) -> None:
    rows = by_name(whole)
    quantized = [rows[name] for name in ("calibrated", "DDTB", "PAMS")]
    assert all(2 <= (row.largest("weight_levels") or 0) <= 4 for row in quantized)
    assert all(2 <= (row.largest("activation_levels") or 0) <= 4 for row in quantized)
    operations = {row.told_once("bit_operations") for row in quantized}
    assert len(operations) == 1, "one placement costs one number of operations"
    ((count,),) = operations
    assert count < (rows["FP32"].largest("bit_operations") or 0) / 16
    model = srquant.load(whole.folder / "runs" / "pams-2bit-seed1" / "quantized.safetensors")
    assert rows["PAMS"].told_once("storage_bytes") == (storage_bytes(model),)
    assert rows["PAMS"].told_once("placement") == (str(model.placement),)


def test_a_step_is_timed_by_the_rows_that_learn_but_the_first(whole: Ring) -> None:
    for name, counted in (("pams", ["3", "4", "6"]), ("ddtb", ["6"])):
        log = (whole.folder / "runs" / f"{name}-2bit-seed1" / "log.csv").read_text().splitlines()
        rates = [float(row["images_per_second"]) for row in csv.DictReader(log) if row["step"] in counted]
        assert len(rates) == len(counted)
        assert told(whole, f"{name}-2bit-seed1")["step_ms"] == pytest.approx(2000 / median(rates))
    times = [told(whole, f"pams-2bit-seed{seed}")["step_ms"] for seed in (1, 2)]
    assert by_name(whole)["PAMS"].median("step_ms") == median(times)
    assert by_name(whole)["calibrated"].median("step_ms") is None


def test_curves_span_all_seeds(whole: Ring) -> None:
    points = curves(whole)
    steps = {name: {p.step for p in points if p.entry == name} for name in ("FP32", "calibrated", "DDTB", "PAMS")}
    assert steps == {"FP32": {0}, "calibrated": {0}, "DDTB": {4, 6}, "PAMS": {2, 4, 6}}
    for point in points:
        assert point.seeds == (1 if point.entry == "FP32" else 2)
        assert point.lowest <= point.mean <= point.highest
    assert any(point.lowest < point.highest for point in points if point.entry == "PAMS")


def test_the_report_says_what_the_table_says(whole: Ring) -> None:
    paths = save_arena(whole)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.json", "curves.csv", "curves.png"]
    rows = table(whole)
    with paths[1].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["entry"] for line in lines] == [row.entry for row in rows]
    for row, line in zip(rows, lines, strict=True):
        assert float(line["SetA_psnr"]) == pytest.approx(row.psnr["SetA"].mean, abs=5e-6)
        assert line["placement"] == "; ".join(row.told_once("placement"))
        assert line["protocol"].startswith("PSNR/SSIM on Y")
        digests = [told(whole, f"{row.entry.lower()}-2bit-seed{seed}")["sha256"] for seed in row.seeds]
        assert line["sha256"].split("; ") == (digests or [told(whole, "fp32")["sha256"]])
        assert line["kernel"] == ("eager" if row.entry in ("DDTB", "PAMS") else "")
    page = paths[0].read_text()
    for row in rows[1:]:
        spread = row.psnr["SetA"]
        assert f"| {row.entry} | 2 | 2 | {spread.mean:.3f} +- {spread.deviation:.3f} |" in page
    assert "| FP32 | 32 | - |" in page
    assert "| 3/6 |" in page
    assert "budget 6 steps of 2 patches of 8x8, float32, seeds 1, 2" in page
    assert "1280x720 out" in page
    plain = json.loads(paths[2].read_text())
    assert plain == json.loads(json.dumps(data(whole, rows)))
    for row, line in zip(rows, plain["rows"], strict=True):
        wanted = zip(row.seeds or (None,), row.results, strict=True)
        assert [(one["seed"], one["sha256"]) for one in line["results"]] == [(seed, r.sha256) for seed, r in wanted]
    assert "in table.csv (column sha256, in the order of the seeds) and in table.json" in page
    assert "ms/step (kernel eager; device cpu): " in page
    with paths[3].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(curves(whole))
    assert paths[4].read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_ends_in_one_line(whole: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arena_report, "atomic_path", full)
    with pytest.raises(UserError, match=r"cannot write the table in '.*arena': No space left on device"):
        save_arena(whole)


def test_a_finished_arena_does_nothing_again(whole: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("train", "score", "start_network"):
        module = "ring" if name == "start_network" else "runs"
        monkeypatch.setattr(f"srquant.experiments.arena.{module}.{name}", again)
    assert sitting(whole, resume=False) == []


def test_many_sittings_give_the_same_networks_and_scores(whole: Ring, tmp_path: Path, place: Place) -> None:
    parts = ring(tmp_path / "parts", place, arena={"seeds": [1]})
    outcomes: list[Outcome] = []
    while now := sitting(parts, time_budget=0):
        assert len(now) == 1, "one step, or one contender that has none, and no more"
        outcomes += now
        assert len(outcomes) < 30
    assert outcomes[1] == Outcome("calibrated-2bit-seed1", "finished", outcomes[1].message)
    assert Outcome("ddtb-2bit-seed1", "out of time", "step 1 of 6") in outcomes
    assert sum(one.status == "out of time" for one in outcomes) >= 10
    for name in RUNS[:3]:
        for key in ("sha256", "validation_psnr", "gradient_steps"):
            assert told(parts, name)[key] == told(whole, name)[key]
        first, second = (one.folder / "runs" / name / "scores" / "SetA.json" for one in (parts, whole))
        assert json.loads(first.read_text())["datasets"] == json.loads(second.read_text())["datasets"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak anew")
def test_the_peak_of_memory_is_that_of_all_sittings(tmp_path: Path, place: Place) -> None:
    one = ring(tmp_path / "arena", place, entry=[ARENA["entry"][2]], arena={"seeds": [1]})
    sitting(one)
    run = one.folder / "runs" / "pams-2bit-seed1"
    (measured,) = recorded_memory(run).values()
    assert told(one, run.name)["peak_megabytes"] == measured
    assert told(one, run.name)["devices"] == ["cpu"]
    assert measured is not None
    assert 0 < measured < 2000
    (run / "peak_memory.json").write_text('{"megabytes": 5000.0}')
    (run / "result.json").unlink()
    assert [outcome.name for outcome in sitting(one)] == [run.name]
    assert told(one, run.name)["peak_megabytes"] == 5000
    assert " device not recorded)" in markdown(one, table(one))


def test_numbers_of_several_devices_are_not_mixed(tmp_path: Path, place: Place) -> None:
    entries = [ARENA["entry"][2], {"name": "LSQ", "method": {"name": "lsq"}, "training": {"kernel": "fused"}}]
    one = ring(tmp_path / "arena", place, entry=entries)
    sitting(one)
    page = markdown(one, table(one))
    assert "(kernel fused, eager of PAMS; device cpu)" in page
    moved, other = (one.folder / "runs" / f"{name}-2bit-seed2" for name in ("pams", "lsq"))
    (moved / "peak_memory.json").write_text('{"megabytes": {"cpu": 100.0, "Some GPU": 7.0}}')
    (other / "peak_memory.json").write_text('{"megabytes": {"Some GPU": 7.0}}')
    for run in (moved, other):
        (run / "result.json").unlink()
    sitting(one)
    assert told(one, moved.name)["devices"] == ["cpu", "Some GPU"]
    assert (told(one, moved.name)["peak_megabytes"], told(one, moved.name)["step_ms"]) == (None, None)
    assert told(one, other.name)["peak_megabytes"] == 7
    for row in by_name(one).values():
        assert (row.median("peak_megabytes"), row.median("step_ms")) == (None, None)
    page = markdown(one, table(one))
    for told_of in ("cpu, then Some GPU of PAMS", "Some GPU of LSQ"):
        assert told_of in page
    assert "neither is told of a row on several devices" in page


def test_sets_and_contenders_are_found_out_once(whole: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[object]] = {"open_set": [], "contenders": []}
    for name, module in (("open_set", scoring), ("contenders", arena_ring)):
        real = getattr(module, name)

        def noted(*args: Any, name: str = name, real: Any = real) -> Any:
            seen[name].append(args)
            return real(*args)

        monkeypatch.setattr(module, name, noted)
    one = Ring(whole.arena, whole.folder, whole.benchmarks)
    assert all(map(one.finished, one.contenders))
    table(one)
    curves(one)
    (benchmark,) = whole.benchmarks
    assert seen == {"open_set": [(benchmark, 1), (benchmark, 2)], "contenders": [(whole.arena,)]}


def test_an_interrupted_arena_shows_what_it_has(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ring(tmp_path / "arena", place, arena={"seeds": [1]})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("srquant.experiments.arena.runs.train", killed)
        with pytest.raises(KeyboardInterrupt):
            sitting(one, resume=False)
    assert {row.entry: len(row.results) for row in table(one)} == {"FP32": 1, "calibrated": 1, "DDTB": 0, "PAMS": 0}
    assert "| PAMS | 2 | 0 of 1 | - | - | - | - | - | - |" in markdown(one, table(one))
    with pytest.raises(UserError, match=r"is not finished: go on with it \(--resume\)"):
        sitting(one, resume=False)
    names = [outcome.name for outcome in sitting(one)]
    assert names == ["ddtb-2bit-seed1", "pams-2bit-seed1"]
    (row,) = [row for row in table(one) if row.entry == "PAMS"]
    assert row.psnr["SetA"].deviation is None
    assert f"| PAMS | 2 | 1 | {row.psnr['SetA'].mean:.3f} |" in markdown(one, table(one))


def test_another_set_is_scored_without_training_again(whole: Ring, tmp_path: Path, place: Place) -> None:
    other = write_pictures(tmp_path / "SetB", 1, seed=9)
    both = ring(tmp_path / "arena", place, place.benchmark, other, arena={"seeds": [1]})
    sitting(ring(tmp_path / "arena", place, arena={"seeds": [1]}))
    before = told(both, "pams-2bit-seed1")
    assert [outcome.status for outcome in sitting(both)] == ["finished"] * 4
    assert told(both, "pams-2bit-seed1") == before
    assert set(by_name(both)["PAMS"].psnr) == {"SetA", "SetB"}
    with pytest.raises(UserError, match="two benchmark sets have the same name: SetA, SetA"):
        ring(tmp_path / "arena", place, place.benchmark, place.benchmark)


def test_a_mistake_in_the_last_entry_is_told_before_the_first_is_trained(tmp_path: Path, place: Place) -> None:
    late = [ARENA["entry"][2], {"name": "DDTB", "method": {"name": "ddtb", "gate_start_epoch": 3}}]
    with pytest.raises(UserError, match=r"entry 'DDTB' at 2 bit: training\.epochs = 2 is too short for ddtb"):
        sitting(ring(tmp_path / "arena", place, entry=late))
    assert not (tmp_path / "arena").exists()
    outcomes = sitting(ring(tmp_path / "arena", place, entry=[late[0]], arena={"seeds": [1]}), resume=False)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"], "nothing was begun with the mistake"


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from srquant.experiments.arena import runs as arena_runs

    real = arena_runs.train

    def fails(experiment: Any, *rest: Any, **options: Any) -> Any:
        if experiment.method.name == "ddtb":
            raise RuntimeError("out of memory\nwhile trying")
        return real(experiment, *rest, **options)

    monkeypatch.setattr(arena_runs, "train", fails)
    one = ring(tmp_path / "arena", place, arena={"seeds": [1]})
    outcomes = {outcome.name: outcome for outcome in sitting(one)}
    assert outcomes["ddtb-2bit-seed1"].status == "failed"
    assert outcomes["ddtb-2bit-seed1"].message == "out of memory while trying"
    assert outcomes["pams-2bit-seed1"].status == "finished"
    assert [outcome.name for outcome in sitting(one)] == ["ddtb-2bit-seed1"]


def test_unequal_and_simulated_rows_say_so(tmp_path: Path, place: Place) -> None:
    entries = [
        {"name": "DAQ", "method": {"name": "daq"}},
        {"name": "longer", "method": {"name": "pams"}, "training": {"epochs": 3}},
        {"name": "strict", "quantization": {"placement": "strict"}},
    ]
    one = ring(tmp_path / "arena", place, entry=entries, arena={"seeds": [1], "unequal": True}, engine="torch")
    sitting(one)
    rows = by_name(one)
    assert {name: row.engines for name, row in rows.items()} == {
        "FP32": ("torch",),
        "DAQ": ("simulate",),
        "longer": ("torch",),
        "strict": ("torch",),
    }
    page = markdown(one, table(one))
    assert "| DAQ | 2 | 1 |" in page
    assert "| simulated |" in page
    assert "- DAQ at 2 bit: DAQ computes its grids per picture; it can only be simulated, not deployed" in page
    assert "| longer * | 2 | 1 |" in page
    assert "- longer at 2 bit is not on equal terms (*): steps = 9, not 6" in page
    assert "- strict at 2 bit is not on equal terms (*): placement = 'strict', not 'ddtb'" in page
    assert rows["longer"].told_once("steps") == (9,)


def test_a_row_with_offsets_says_that_levels_are_those_of_channels(tmp_path: Path, place: Place) -> None:
    offsets = {"offsets": "shift", "offset_ratio": 1.0, "calibration_batches": 2, "offset_learning_rate": 1.0}
    entries = [{"name": "offsets", "method": {"name": "odm", **offsets}}, ARENA["entry"][2]]
    one = ring(tmp_path / "arena", place, entry=entries, arena={"seeds": [1]})
    sitting(one)
    model = srquant.load(one.folder / "runs" / "offsets-2bit-seed1" / "quantized.safetensors")
    count = len(model.shifted())
    assert count > 1
    row = by_name(one)["offsets"]
    assert row.largest("offset_tensors") == count
    assert 2 <= (row.largest("activation_levels") or 0) <= 4
    page = markdown(one, table(one))
    assert (
        f"- offsets at 2 bit: levels counted per channel: {count} tensors with shifted channels; BitOPs count" in page
    )
    assert "PAMS at 2 bit: levels" not in page


def test_calibration_takes_its_share_from_every_folder(tmp_path: Path, place: Place) -> None:
    more = write_pictures(tmp_path / "more", 3, seed=5)
    one = ring(tmp_path / "arena", place, entry=[ARENA["entry"][0]], arena={"seeds": [1]}, calibration={"images": 4})
    folders = one.arena.data.model_copy(update={"train": (str(place.pictures), str(more))})
    one = Ring(one.arena.model_copy(update={"data": folders}), one.folder)
    sitting(one)
    model = srquant.load(one.folder / "runs" / "calibrated-2bit-seed1" / "quantized.safetensors")
    digests = [record["sha256"] for record in model.calibration["pictures"]]
    known = [{sha256(path) for path in folder.iterdir()} for folder in (place.pictures, more)]
    assert [sum(digest in folder for digest in digests) for folder in known] == [2, 2]
