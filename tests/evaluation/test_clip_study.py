from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_quantized import float_network
from small_study import SETTINGS, make_place, run

import srquant
from srquant.config import CalibrationConfig
from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.evaluation import clip_study, clip_times
from srquant.evaluation.clip_report import markdown, table
from srquant.evaluation.clip_rows import FLOAT, Row, Study, StudySettings, Variant, variants
from srquant.evaluation.clip_study import quantized_variant, run_clip_study, scores
from srquant.imaging import open_set, read_picture
from srquant.imaging.crops import calibration_crops
from srquant.methods import cfqp
from srquant.metrics import Protocol, psnr, ssim
from srquant.networks.info import SRNetwork
from srquant.progress import Silent

FILES = ["patches.png", "plot.png", "study.csv", "study.json", "study.md"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", autouse=True)
def one_engine() -> Iterator[None]:
    """Exporting the float network for other engines takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_times, "installed_engines", lambda: ["simulate", "reference", "torch", "unknown"])
        yield


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """The folder of a finished study."""
    run(place, place / "done")
    return place / "done"


def test_variants_are_all_combinations() -> None:
    found = list(variants(100, clipped=True))
    assert len(found) == len(set(found)) == 2 * 2 * 8
    assert {variant.mode for variant in found} == {"range", "min-max", "select", "tame"}
    assert {variant.clip for variant in variants(100, clipped=False)} == {"removed"}
    assert {variant.pictures for variant in found} - {variant.pictures for variant in variants(7, clipped=True)} == {
        "10 natural"
    }


def test_a_study_is_written_whole(done: Path, place: Path) -> None:
    assert sorted(path.name for path in done.iterdir()) == FILES
    study = Study.load(done)
    assert study is not None
    assert [row.variant for row in study.rows] == list(variants(7, clipped=True))
    rows = {row.variant: row for row in study.rows}
    plain, naive = (rows[Variant("removed", output, "all natural")] for output in ("given", "calibrated"))
    assert (plain.used, plain.range) == (7, None)
    assert naive.range is not None
    assert naive.range[0] < 0 < 255 < naive.range[1]
    assert naive.operations == plain.operations + 1
    assert rows[Variant("kept", "given", "all natural")].operations == plain.operations + 2
    assert rows[Variant("removed", "given", "1 natural")].used == 1
    assert study.facts["set"] == "Set2"
    assert len(study.facts["calibration_pictures"]) == 7
    assert set(study.times) == {FLOAT, *(row.variant.form for row in study.rows)}
    assert {tuple(times) for times in study.times.values()} == {("torch",)}
    assert all(time > 0 for times in study.times.values() for time in times.values())


def test_its_scores_are_those_of_the_engine_and_the_protocol(done: Path, place: Path) -> None:
    study = Study.load(done)
    assert study is not None
    network = float_network("abpn_x3")
    crops = calibration_crops(place / "others", 3, SETTINGS.calibration)
    for row in study.rows[:4]:
        engine = open_engine(quantized_variant(network, crops, row.variant, SETTINGS)[0], "torch")
        found = {name: [] for name in row.scores}
        for pair in open_set(place / "Set2", 3).pairs:
            low, high = pair.load(3)
            for channel in ("rgb", "y"):
                found[f"psnr_{channel}"].append(psnr(engine.run(low), high, Protocol(channel, 3)))
                found[f"ssim_{channel}"].append(ssim(engine.run(low), high, Protocol(channel, 3)))
        assert row.scores == {name: pytest.approx(np.mean(values)) for name, values in found.items()}


def test_noise_leaves_nothing_to_select_and_the_row_says_so(done: Path) -> None:
    study = Study.load(done)
    assert study is not None
    refused = [row for row in study.rows if row.refused]
    assert {row.variant.pictures for row in refused} == {"unsaturated"}
    assert all("leaves none of 7 pictures" in row.refused for row in refused)
    assert not any(row.scores for row in refused)


def test_the_tables_tell_the_rows(done: Path) -> None:
    study = Study.load(done)
    assert study is not None
    text = (done / "study.md").read_text()
    assert text == markdown(study)
    assert "All scores are means over the 2 pictures of Set2 and hold for this set" in text
    assert "| clip removed, output given |" in text
    rows = list(csv.DictReader((done / "study.csv").read_text().splitlines()))
    assert (done / "study.csv").read_text() == table(study)
    assert len(rows) == len(study.rows)
    for told, row in zip(rows, study.rows, strict=True):
        assert (told["clip"], told["pictures"], told["mode"]) == (
            row.variant.clip,
            row.variant.pictures,
            row.variant.mode,
        )
        assert told["psnr_rgb"] == str(row.scores.get("psnr_rgb", ""))
        if row.scores:
            assert f"{row.scores['psnr_rgb']:.3f} | {row.scores['ssim_rgb']:.4f}" in text


def test_an_interrupted_study_goes_on_and_ends_alike(
    place: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Variant] = []

    def counted(*args: object) -> Row:
        variant = args[2]
        assert isinstance(variant, Variant)
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(variant)
        return row(*args)  # pyright: ignore[reportArgumentType]

    row = clip_study._row
    monkeypatch.setattr(clip_study, "_row", counted)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / "study")
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["study.json"]
    half = Study.load(tmp_path / "study")
    assert half is not None
    assert [one.variant for one in half.rows] == made
    made.clear()
    monkeypatch.setattr(clip_study, "_row", lambda *args: made.append(args[2]) or row(*args))
    run(place, tmp_path / "study")
    assert made == list(variants(7, clipped=True))[3:]
    first, second = (
        json.loads((done / "study.json").read_text()),
        json.loads((tmp_path / "study/study.json").read_text()),
    )
    assert first.pop("times").keys() == second.pop("times").keys()
    assert first == second
    for name in ("study.csv", "patches.png", "plot.png"):
        assert (done / name).read_bytes() == (tmp_path / "study" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == FILES


def test_a_folder_with_another_study_is_refused(place: Path, done: Path) -> None:
    before = (done / "study.json").read_bytes()
    other = StudySettings(CalibrationConfig(images=7, crop=12, seed=1), height=10, width=12, rounds=2, threads=1)
    with pytest.raises(UserError, match="holds another study: its calibration_pictures differs; take another folder"):
        run(place, done, other)
    with pytest.raises(UserError, match="holds another study: its network differs"):
        run(place, done, network=float_network("xlsr_x3"))
    assert (done / "study.json").read_bytes() == before


@pytest.mark.parametrize("change", [{"height": 9}, {"width": 9}, {"rounds": 3}, {"threads": None}])
def test_another_timing_keeps_the_scores(
    change: dict[str, Any], place: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done, tmp_path / "study")
    before = Study.load(done)
    assert before is not None
    monkeypatch.setattr(clip_study, "_row", None)
    monkeypatch.setattr(clip_study, "times", lambda *_: {FLOAT: {"torch": 7.0}})
    run(place, tmp_path / "study", replace(SETTINGS, **change))
    after = Study.load(tmp_path / "study")
    assert after == replace(before, facts={**before.facts, **change}, times={FLOAT: {"torch": 7.0}})
    monkeypatch.setattr(clip_study, "times", None)
    run(place, tmp_path / "study", replace(SETTINGS, **change))
    assert Study.load(tmp_path / "study") == after


def test_too_little_memory_to_time_is_told_and_the_scores_are_kept(
    place: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object) -> dict[str, float]:
        raise failure

    shutil.copytree(done, tmp_path / "study")
    monkeypatch.setattr(clip_times, "interleaved_medians", timed)
    failure = MemoryError()
    with pytest.raises(UserError, match=r"too little memory to time a picture of 9x12: .*--shape"):
        run(place, tmp_path / "study", replace(SETTINGS, height=9))
    assert (tmp_path / "study/study.json").read_bytes() == (done / "study.json").read_bytes()
    failure = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(place, tmp_path / "study", replace(SETTINGS, height=9))


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 9999, "1" * 5000, '{"facts": {}, "rows": [{}]}'])
def test_a_file_that_is_no_study_is_refused(text: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match="is not a readable clip study") as error:
        run(place, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "study.json").read_text() == text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("facts", [1], r"\(facts: input should be an object\)"),
        ("float_scores", [1], r"\(float_scores: input should be an object\)"),
        ("float_scores", {"psnr_rgb": 30.0}, r"\(float_scores: .*none, or all of psnr_rgb, ssim_rgb, psnr_y, ssim_y\)"),
        ("rows.0.scores", "x", r"\(rows.0.scores: input should be an object\)"),
        ("rows.0.scores", {}, "either scores or a reason"),
        ("rows.0.scores.psnr_y", "high", r"\(rows.0.scores.psnr_y: input should be a valid number"),
        ("rows.0.scores.psnr_y", float("nan"), r"\(rows.0.scores.psnr_y: input should be a finite number\)"),
        ("rows.1.range", [3.0], r"\(rows.1.range.1: field required\)"),
        ("rows.1.range", [1.0, 2.0, 3.0], "rows.1.range"),
        ("rows.0.used", -1, "rows.0.used"),
        ("rows.0.variant.clip", "gone", "rows.0.variant.clip: input should be 'removed' or 'kept'"),
        ("rows.0.variant.pictures", "all", "unknown pictures 'all'"),
        ("rows.0.variant.pictures", "5 natural", "a variant is there twice"),
        ("rows.0.more", 1, "rows.0.more: unexpected keyword argument"),
        ("times", {"float32": 3.0}, r"\(times.float32: input should be an object\)"),
        ("more", 1, r"\(more: unexpected keyword argument\)"),
    ],
)
def test_a_damaged_study_is_refused(
    path: str, value: object, message: str, place: Path, done: Path, tmp_path: Path
) -> None:
    plain = json.loads((done / "study.json").read_text())
    table, *names = plain, *path.split(".")
    for name in names[:-1]:
        table = table[int(name) if name.isdigit() else name]
    table[names[-1]] = value
    (tmp_path / "study.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=f"is not a readable clip study.*{message}.*remove it") as error:
        run(place, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "headings"),
    [("abpn_x3", ["clip kept, min-max", "clip removed, given"]), ("edsr_x2", ["min-max", "given"])],
)
def test_the_sheet_speaks_of_a_clip_where_there_is_one(
    key: str, headings: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = float_network(key)
    pairs = open_set(place / "Set2", network.info.scale)
    crops = calibration_crops(place / "others", network.info.scale, SETTINGS.calibration)
    found: list[list[str]] = []
    monkeypatch.setattr(clip_study, "worst_patches", lambda engines, _pairs: found.append(list(engines)) or [])
    clip_study._patches(network, pairs, crops, SETTINGS)
    assert found == [[FLOAT, *headings]]


def test_untamed_pictures_are_warned_of_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []

    class Noted(Silent):
        def warn(self, text: str) -> None:
            warnings.append(text)

    monkeypatch.setattr(cfqp, "_ROUNDS", 0)
    network = float_network("abpn_x3")
    run_clip_study(network, place / "Set2", place / "others", tmp_path / "study", SETTINGS, Noted())
    assert warnings == [warning for warning in warnings if "7 of 7 pictures still leave 0..255" in warning]
    assert len(warnings) == 1


@pytest.mark.parametrize(("name", "expected"), [("abpn_x3", 31.551), ("xlsr_x3", 31.320)])
def test_official_protocol_of_real_float_networks(name: str, expected: float, shared: Path) -> None:
    """PSNR on RGB with 3 pixels shaved off, Set5 x3: what ABPN's authors report by."""
    network = srquant.load(shared / "data/weights" / f"{name}.safetensors")
    found = scores(open_engine(network, "torch"), open_set(shared / "data/benchmarks/Set5", 3))
    assert found["psnr_rgb"] == pytest.approx(expected, abs=0.002)


def test_real_abpn_collapses_on_dark_pictures_unless_its_output_is_given(shared: Path) -> None:
    network = srquant.load(shared / "data/weights/abpn_x3.safetensors")
    assert isinstance(network, SRNetwork)
    settings = StudySettings(CalibrationConfig(images=20))
    crops = calibration_crops(shared / "data/train/bsds500", 3, settings.calibration)
    pairs = open_set(shared / "data/benchmarks/Set5", 3)

    def score(output: str, pictures: str) -> float:
        variant = Variant("removed", output, pictures)  # pyright: ignore[reportArgumentType]
        return scores(open_engine(quantized_variant(network, crops, variant, settings)[0], "torch"), pairs)["psnr_rgb"]

    assert score("calibrated", "dark (x 0.5)") < 27
    assert score("given", "dark (x 0.5)") > 30
    assert 31.4 < score("calibrated", "all natural") < score("given", "all natural")


def test_the_sheet_is_a_picture(done: Path) -> None:
    assert read_picture(done / "patches.png").rgb.shape[2] == 3
    assert read_picture(done / "plot.png").rgb.std() > 1
