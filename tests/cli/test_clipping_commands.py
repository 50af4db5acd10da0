from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calling import run
from small_quantized import float_network, noise

from srquant.cli import clipping
from srquant.engines import load
from srquant.evaluation import clip_times
from srquant.evaluation.clip_rows import SCORES, Row, Study, Variant
from srquant.imaging import Picture, write_picture
from srquant.networks.loading import save_network
from srquant.quantizers import QuantizedNetwork


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a clip, six pictures, and a benchmark set."""
    folder = tmp_path_factory.mktemp("clipping")
    save_network(float_network("abpn_x3"), folder / "net.safetensors")
    for name, count in (("pictures", 6), ("Set1/HR", 1)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            write_picture(folder / name / f"p{i}.png", Picture(noise(54, 57, i), None, False, None, None))
    return folder


def test_ranges_saved_and_used_again_give_the_same_network(ready: Path, tmp_path: Path) -> None:
    network, ranges = ready / "net.safetensors", tmp_path / "ranges.json"
    first, again, third = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "third"))
    options = ["--data", ready / "pictures", "--crop", 16, "--ranges", "mse", "--weight-bits", 6]
    told = run("quantize", network, "-o", first, *options, "--save-ranges", ranges)
    assert str(ranges) in told
    text = ranges.read_bytes()
    for target in (again, third):
        pictures = ["--data", ready / "pictures", "--save-ranges", tmp_path / "copy.json"]
        run("quantize", network, "-o", target, "--ranges-from", ranges, *pictures)
        assert (tmp_path / "copy.json").read_bytes() == text
    assert again.read_bytes() == third.read_bytes()
    assert "of a calibration file" in run("info", again)
    assert "of a calibration file" not in run("info", first)
    one, two = load(first), load(again)
    assert isinstance(one, QuantizedNetwork)
    assert isinstance(two, QuantizedNetwork)
    assert two.quantization == one.quantization
    assert len(two.calibration.pop("ranges_file_sha256")) == 64
    assert two.calibration == one.calibration
    for name, quantizer in one.activation_quantizers().items():
        assert two.activation_quantizers()[name].grid == quantizer.grid
    for name, layer in one.convolutions().items():
        assert torch.equal(two.convolutions()[name].codes().weight, layer.codes().weight)
        assert torch.equal(two.convolutions()[name].codes().bias, layer.codes().bias)
    run("quantize", network, "-o", tmp_path / "other.safetensors", *options, "--save-ranges", tmp_path / "same.json")
    assert (tmp_path / "same.json").read_bytes() == text


def test_ranges_of_other_weights_are_warned_of_where_they_fit(
    ready: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    ranges = tmp_path / "ranges.json"
    start = ["quantize", ready / "net.safetensors", "-o", tmp_path / "q.safetensors"]
    options = ["--crop", 16, "--weight-rounding", "nearest", "--save-ranges", ranges]
    run(*start, "--data", ready / "pictures", *options)
    assert "other weights" not in run(*start, "--ranges-from", ranges)
    told = json.loads(ranges.read_text())
    ranges.write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
    assert "warning: the ranges of" in run(*start, "--ranges-from", ranges)
    ranges.write_text(json.dumps({**told, "weights_sha256": "0" * 64, "network": "xlsr"}))
    assert "those of another network" in fails(*start, "--ranges-from", ranges)


def test_pictures_are_given_where_weights_are_rounded_on_them_and_only_there(
    ready: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    ranges, other = tmp_path / "ranges.json", tmp_path / "other"
    start = ["quantize", ready / "net.safetensors", "-o", tmp_path / "q.safetensors"]
    run(*start, "--data", ready / "pictures", "--crop", 16, "--save-ranges", ranges)
    again = [*start, "--ranges-from", ranges]
    assert "give their folder too (--data)" in fails(*again)
    other.mkdir()
    source = sorted((ready / "pictures").iterdir())[0]
    (other / source.name).write_bytes(source.read_bytes())
    assert "are not those that the ranges were taken from" in run(*again, "--data", other)
    text = ranges.read_text().replace('"compensated"', '"nearest"')
    ranges.write_text(text)
    assert "it needs no pictures" in fails(*again, "--data", ready / "pictures")
    run(*again)


def test_few_pictures_are_warned_of(ready: Path, tmp_path: Path) -> None:
    start = ["quantize", ready / "net.safetensors", "-o", tmp_path / "q.safetensors", "--data", ready / "pictures"]
    assert "warning: ranges from 4 of 4 pictures" in run(*start, "--images", 4, "--crop", 16)
    assert "warning" not in run(*start, "--images", 5, "--crop", 16)


def test_every_option_reaches_the_artefact(ready: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    words = "--clip keep --output-range calibrated --mode tame --gain 0.9 --offset 3 --noise 0.1 --crop 16"
    run("quantize", ready / "net.safetensors", "-o", target, "--data", ready / "pictures", *words.split())
    network = load(target)
    assert isinstance(network, QuantizedNetwork)
    assert (network.quantization.clip, network.quantization.output_range) == ("keep", "calibrated")
    told = network.calibration
    assert (told["mode"], told["gain"], told["offset"], told["noise"]) == ("tame", 0.9, 3.0, 0.1)
    assert all("gain" in record for record in told["pictures"])
    shown = run("info", target)
    assert "kept as an operation" in shown
    assert "a grid of its own" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give one"),
        ("--data pictures --weight-rounding down", "unknown weight rounding 'down'; known: compensated, nearest"),
        ("--ranges-from r.json --weight-bits 4", "--weight-bits does not go with --ranges-from"),
        ("--ranges-from r.json --low-resolution", "--low-resolution does not go with --ranges-from"),
        ("--ranges-from missing.json", "cannot read 'missing.json'"),
        ("--data pictures --clip kep", "unknown clip 'kep'; known: fold, keep; did you mean 'keep'"),
        ("--data pictures --output-range fixed", "unknown output range 'fixed'; known: picture, calibrated"),
        ("--data pictures --mode selct", "unknown mode 'selct'; .*did you mean 'select'"),
        ("--data pictures --gain 0", "gain = 0.0: input should be greater than 0"),
        ("--data pictures --noise 2", "noise = 2.0: input should be less than or equal to 1"),
        ("--data pictures --save-ranges missing/r.json", "the folder 'missing' does not exist"),
    ],
)
def test_mistakes_of_quantize(
    words: str, message: str, ready: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(ready)
    told = fails("quantize", "net.safetensors", "-o", "q.safetensors", *words.split())
    assert re.search(message, told)
    assert not (ready / "q.safetensors").exists()


def test_overshoot_prints_and_writes(ready: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.json"
    told = run("overshoot", ready / "net.safetensors", "--data", ready / "pictures", "--crop", 16, "--json", target)
    for word in ("p0.png", "below 0", "add (output)", "6 pictures", "advice", "overshoot above 255"):
        assert word in told
    report = json.loads(target.read_text())
    assert [picture["name"] for picture in report["pictures"]] == [f"p{i}.png" for i in range(6)]
    assert all(line in told.replace("\n", "") for line in report["advice"])
    few = run("overshoot", ready / "net.safetensors", "--data", ready / "pictures", "--images", 2, "--gain", 0.3)
    assert "too few pictures: 2" in few
    assert "all pictures are dark" in few


def test_clip_study_writes_its_files_and_goes_on(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_times, "installed_engines", lambda: ["torch"])
    words = "--images 3 --crop 12 --shape 8x10 --rounds 1 --threads 1"
    start = ["clip-study", ready / "net.safetensors", "--data", ready / "Set1", "-o", tmp_path / "s", *words.split()]
    assert "calibrated on pictures that are scored (1 of 1)" in run(*start)
    told = run(*start, "--calibration", ready / "Set1")
    assert "calibrated on pictures that are scored (1 of 1)" in told
    for name in ("study.json", "study.md", "study.csv", "plot.png", "patches.png"):
        assert f"{tmp_path / 's' / name}" in told
        assert (tmp_path / "s" / name).stat().st_size > 0
    report = (tmp_path / "s" / "study.md").read_text()
    assert "1 thread:" in report
    assert "10x8 enlarged" in report
    before = (tmp_path / "s" / "study.json").read_bytes()
    run(*start)
    assert (tmp_path / "s" / "study.json").read_bytes() == before


@pytest.mark.parametrize("shape", ["180", "x", "0x4", "4x0", "axb", "-3x4", "²x20", "3x4x5", "9" * 5000 + "x4"])
def test_a_shape_that_is_none(
    shape: str, ready: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(ready)
    words = ["clip-study", "net.safetensors", "--data", "Set1", "-o", "s", f"--shape={shape}"]
    assert f"shape '{shape}': " in fails(*words)


def test_clip_study_prints_its_tables(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_times, "installed_engines", lambda: ["torch"])
    words = "--images 3 --crop 12 --shape 8x10 --rounds 1 --threads 1"
    start = ["clip-study", ready / "net.safetensors", "--data", ready / "Set1", "-o", tmp_path / "s", *words.split()]
    told = run(*start, "--calibration", ready / "pictures")
    study = Study.load(tmp_path / "s")
    assert study is not None
    scored = [row for row in study.rows if row.scores]
    for scores in (study.float_scores, *(row.scores for row in scored)):
        assert re.search(f"{scores['psnr_rgb']:.3f} .* {scores['psnr_y']:.3f} ", told)
    assert len(re.findall("(removed|kept) .* (range|min-max|tame|select) .* ", told)) == len(study.rows)
    for form, times in study.times.items():
        assert re.search(f"{form} .* {times['torch']:.1f} ", told)
    assert "mean PSNR in dB over Set1, 3 pixels shaved off" in " ".join(told.split())


def test_a_row_without_scores_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"network": "abpn", "scale": 3, "weights_sha256": "0" * 64, "set": "Set1", "engine": "torch"}
    scores = dict.fromkeys(SCORES, 30.0)
    rows = (Row(Variant("removed", "given", "tamed"), 3, None, scores),)
    rows += (Row(Variant("kept", "calibrated", "unsaturated"), refused="none is left"),)
    clipping._print_scores(Study(facts, scores, rows))
    told = capsys.readouterr().out
    assert re.search("kept .* select .* unsaturated .* 0 .* - .* - .* - ", told)
    assert "no score on unsaturated  none is left\n" in told
    assert "no score on tamed" not in told


def test_a_mistyped_engine_is_named_and_nothing_written(ready: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    start = ["clip-study", ready / "net.safetensors", "-o", tmp_path / "s", "--data", ready / "Set1"]
    words = ["--calibration", ready / "Set1", "--engine", "litrt"]
    assert "unknown engine 'litrt'; " in fails(*start, *words)
    assert not (tmp_path / "s").exists()


def test_a_damaged_study_ends_in_one_line(ready: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "study.json").write_text('{"facts": {}, "float_scores": [1], "rows": [], "times": {}}')
    start = ["clip-study", ready / "net.safetensors", "-o", tmp_path, "--data", ready / "Set1"]
    told = fails(*start, "--calibration", ready / "pictures", "--crop", 12)
    assert "study.json' is not a readable clip study (float_scores: input should be an object)" in told


def test_only_a_float_network_is_studied(ready: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    target = tmp_path / "q.safetensors"
    run("quantize", ready / "net.safetensors", "-o", target, "--data", ready / "pictures", "--crop", 16)
    for command in (["overshoot", target], ["clip-study", target, "-o", tmp_path / "s"]):
        told = fails(*command, "--data", ready / "pictures")
        assert "only a float network" in told
    assert not (tmp_path / "s").exists()
