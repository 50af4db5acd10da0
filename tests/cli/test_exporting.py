"""`srquant export` by suffix, and a LiteRT file on the whole command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calling import run
from small_quantized import float_network, noise, quantized_network

from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.imaging import Picture, read_picture, write_picture
from srquant.networks.loading import save_network
from srquant.quantizers import save_artefact

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float network, artefacts, and a benchmark set."""
    folder = tmp_path_factory.mktemp("place")
    save_network(float_network("edsr_x2"), folder / "net.safetensors")
    save_artefact(quantized_network("edsr_x2"), folder / "int8.safetensors")
    save_artefact(quantized_network("imdn_x2"), folder / "imdn.safetensors")
    (folder / "Set1" / "HR").mkdir(parents=True)
    write_picture(folder / "Set1" / "HR" / "p.png", Picture(noise(72, 80), None, False))
    return folder


@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.tflite"])
def test_the_suffix_tells_the_format(name: str, place: Path, tmp_path: Path) -> None:
    told = run("export", place / "int8.safetensors", "-o", tmp_path / name)
    files = sorted(tmp_path.iterdir(), reverse=True)
    size = sum(file.stat().st_size for file in files)
    assert f"{' and '.join(map(str, files))} ({size / 1000:.0f} kB)" in told
    assert "exported quantised network" in run("info", tmp_path / name)


def test_a_litert_file_is_told_verified_scored_and_run(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.tflite"
    options = ("--to", "litert", "--shape", "30x32", "--io", "int8")
    told = run("export", place / "int8.safetensors", "-o", file, *options)
    for words in ("int8 of 30x32 (height x width) only", "proven, bit for bit"):
        assert words in told
        assert words in run("info", file)
    told = run("verify", place / "int8.safetensors", "--exported", file)
    (row,) = [line for line in told.splitlines() if "│ litert" in line]
    assert re.search(r"│ +0 │ +0.0000 % │ +inf │ +0 │ kept: equal", row)
    by_file = run("evaluate", file, "--data", place / "Set1", "--threads", "1")
    by_reference = run("evaluate", place / "int8.safetensors", "--data", place / "Set1", "--engine", "reference")
    scores = [re.search(r"Set1 +│ ([\d.]+) │ ([\d.]+)", told) for told in (by_file, by_reference)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].groups() == scores[1].groups()
    run("export", place / "int8.safetensors", "-o", tmp_path / "wide.tflite", "--shape", "36x41")
    with pytest.raises(UserError, match="'p' has 36x40 pixels, fewer than the 36x41 that the file takes, so its score"):
        run("evaluate", tmp_path / "wide.tflite", "--data", place / "Set1")
    run("upscale", place / "Set1" / "HR" / "p.png", "-o", tmp_path / "large.png", "-m", file)
    expected = open_engine(quantized_network("edsr_x2"), "reference").run(noise(72, 80))
    assert np.array_equal(read_picture(tmp_path / "large.png").rgb, expected)


def test_litert_runs_an_artefact(place: Path) -> None:
    told = run("verify", place / "int8.safetensors", "--engine", "litert")
    assert re.search(r"│ litert +│ +0 │ .* kept: equal", told)
    told = run("verify", place / "imdn.safetensors", "--engine", "litert")
    assert "not promised equal" in told
    assert "litert computes in float" in told


MISTAKES = {
    "an unknown suffix": ("int8.safetensors -o a.bin", "does not tell its format by its suffix"),
    "a suffix of another format": ("int8.safetensors -o a.onnx --to litert", "ends in '.tflite', not '.onnx'"),
    "an unknown format": ("int8.safetensors -o a.tflite --to litret", "did you mean 'litert'"),
    "a shape that is none": ("int8.safetensors -o a.tflite --shape 128", "expected HEIGHTxWIDTH"),
    "a shape with signs": ("int8.safetensors -o a.tflite --shape=-8x8", "expected HEIGHTxWIDTH"),
    "a shape of nothing": ("int8.safetensors -o a.tflite --shape 0x8", "neither side may be 0"),
    "a shape for onnx": ("int8.safetensors -o a.onnx --shape 8x8", "go with litert"),
    "int8 pictures for openvino": ("int8.safetensors -o a.xml --io int8", "go with litert"),
    "pictures of another kind": ("int8.safetensors -o a.tflite --io float32", "unknown kind of pictures 'float32'"),
    "a float network": ("net.safetensors -o a.tflite", "quantise it, or export to onnx"),
    "operations in float": ("imdn.safetensors -o a.tflite --shape 8x8", "no integer form: .*--allow-float"),
    "a network that needs its size": ("imdn.safetensors -o a.tflite --allow-float", "with --shape HxW"),
    "a missing folder": ("int8.safetensors -o no/a.tflite", "does not exist"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    told = fails("export", *arguments.split())
    assert re.search(message, told), told
    assert sorted(place.rglob("*")) == before
