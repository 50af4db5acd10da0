from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_quantized import float_network, noise

import srquant
from srquant.config import CalibrationConfig
from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.evaluation import clip_study
from srquant.evaluation.clip_report import markdown, table
from srquant.evaluation.clip_rows import FLOAT, Row, Study, StudySettings, Variant, variants
from srquant.evaluation.clip_study import quantized_variant, run_clip_study, scores
from srquant.evaluation.patches import sheet, worst_patches
from srquant.evaluation.timing import interleaved_medians
from srquant.imaging import Picture, open_set, read_picture, write_picture
from srquant.imaging.crops import calibration_crops
from srquant.metrics import Protocol, psnr, ssim
from srquant.networks.info import SRNetwork
from srquant.progress import Silent

SETTINGS = StudySettings(CalibrationConfig(images=7, crop=12), height=10, width=12, rounds=2, threads=1)
FILES = ["patches.png", "plot.png", "study.csv", "study.json", "study.md"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two pictures and seven more to calibrate on, of black and white squares: each overshoots."""
    folder = tmp_path_factory.mktemp("clips")
    for name, count in (("Set2/HR", 2), ("others", 7)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = noise(18, 20 + i, seed=count + i).repeat(3, axis=0).repeat(3, axis=1)
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8) if name == "others" else pixels
            write_picture(folder / name / f"p{i}.png", Picture(pixels, None, False, None, None))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_engine() -> Iterator[None]:
    """Exporting the float network for other engines takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_study, "installed_engines", lambda: ["simulate", "reference", "torch", "unknown"])
        yield


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """The folder of a finished study."""
    run(place, place / "done")
    return place / "done"


def run(place: Path, folder: Path, settings: StudySettings = SETTINGS, network: SRNetwork | None = None) -> list[Path]:
    network = network or float_network("abpn_x3")
    return run_clip_study(network, place / "Set2", place / "others", folder, settings, Silent())


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


def test_a_damaged_study_is_refused(place: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"facts": {}, "rows": [{}]}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(UserError, match="is not a readable clip study"):
            run(place, tmp_path)


def test_without_matplotlib_nothing_begins(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"plot of a clip study needs the package 'matplotlib': .*srquant\[plot\]"):
        run(place, tmp_path / "study")
    assert not (tmp_path / "study").exists()


class Wrong:
    """Repeats pixels, and is off by `error` at one place."""

    name = "wrong"
    halo: int | None = 0
    shape: tuple[int, int] | None = None

    def __init__(self, error: int, at: tuple[int, int]) -> None:
        self.info = float_network("edsr_x2").info
        self._error, self._at = error, at

    def run(self, picture: np.ndarray) -> np.ndarray:
        enlarged = picture.repeat(2, axis=0).repeat(2, axis=1)
        enlarged[self._at] = np.clip(enlarged[self._at].astype(int) + self._error, 0, 255)
        return enlarged

    def left_in_float(self) -> list[str]:
        return []


def test_the_worst_patches_are_found_and_shown(tmp_path: Path) -> None:
    pixels = np.full((100, 150, 3), 100, np.uint8)
    write_picture(tmp_path / "grey.png", Picture(pixels, None, False, None, None))
    engines = {"good": Wrong(0, (0, 0)), "bad": Wrong(48, (70, 100))}
    (first, second) = worst_patches(engines, open_set(tmp_path, 2), count=2)
    assert first.loss == pytest.approx(48**2 / 48**2)
    assert second.loss == 0
    assert list(first.views) == ["low resolution", "good", "bad", "true"]
    assert first.views["bad"][70 - 48, 100 - 96].tolist() == [148] * 3
    shown = sheet([first, second])
    assert shown.shape[1] == 4 * (48 * 4 + 8) + 8
    bad = shown[32 : 32 + 192, 8 + 2 * 200 : 8 + 2 * 200 + 192]
    assert (bad == 148).all(axis=2).sum() == 4 * 4
    assert (bad == 100).all(axis=2).sum() == 192 * 192 - 4 * 4


def test_times_are_medians_of_interleaved_runs() -> None:
    order: list[str] = []

    class Noted(Wrong):
        def __init__(self, word: str) -> None:
            super().__init__(0, (0, 0))
            self.word = word

        def run(self, picture: np.ndarray) -> np.ndarray:
            order.append(self.word)
            return picture

    found = interleaved_medians({"a": Noted("a"), "b": Noted("b")}, noise(4, 4), 3, Silent())
    assert order == ["a", "b"] * 4
    assert all(0 <= time < 1000 for time in found.values())


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
