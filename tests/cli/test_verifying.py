"""`srquant verify` and flat pictures: what is told, and when the exit code is 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_quantized import float_network, quantized_network
from typer.testing import CliRunner, Result

import srquant
from srquant.cli import verifying
from srquant.cli.app import app
from srquant.engines import open_engine
from srquant.evaluation.flat_pictures import FlatPictures, judge_flat_pictures
from srquant.evaluation.verification import Verification
from srquant.networks.loading import save_network
from srquant.quantizers import save_artefact


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifying")
    for key in ("abpn_x3", "edsr_x2"):
        save_network(float_network(key), folder / f"{key}.safetensors")
        for bits in (2, 8):
            save_artefact(quantized_network(key, bits), folder / f"{key}_{bits}.safetensors")
    return folder


def verify(*args: object) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, args), "--engine", "onnxruntime"])


@pytest.mark.parametrize("key", ["abpn_x3", "edsr_x2"])
@pytest.mark.parametrize("bits", [2, 8])
def test_the_exit_code_tells_who_is_worse_than_the_float_network(key: str, bits: int, place: Path) -> None:
    artefact, checkpoint = place / f"{key}_{bits}.safetensors", place / f"{key}.safetensors"
    wanted = judge_flat_pictures(open_engine(float_network(key), "torch"))
    found = judge_flat_pictures(open_engine(quantized_network(key, bits), "onnxruntime"))
    alone, against = verify(artefact), verify(artefact, "--float", checkpoint)
    assert alone.exit_code == 0
    assert f"flat pictures, as run  {found}" in alone.output
    assert ("--float CHECKPOINT" in alone.output) == bool(found.faults())
    assert against.exit_code == (1 if found.faults(wanted) else 0)
    assert f"flat pictures, float network  {wanted}" in against.output


def test_low_bits_are_worse_than_the_float_network(place: Path) -> None:
    assert verify(place / "edsr_x2_2.safetensors", "--float", place / "edsr_x2.safetensors").exit_code == 1


def test_a_file_of_another_artefact_is_told_in_the_table(place: Path, tmp_path: Path) -> None:
    srquant.export(place / "edsr_x2_8.safetensors", tmp_path / "a.onnx")
    own = verify(place / "edsr_x2_8.safetensors", "--exported", tmp_path / "a.onnx")
    other = verify(place / "edsr_x2_2.safetensors", "--exported", tmp_path / "a.onnx")
    assert (own.exit_code, other.exit_code) == (0, 1)
    assert "kept: equal" in own.output
    assert "exported from another artefact" in other.output
    assert "BROKEN" not in other.output


def test_a_border_that_is_much_worse_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = FlatPictures(255, 0, 0.0, 0.0, 20)
    one = Verification("onnxruntime", 0, 0.0, math.inf, (), True, replace(wanted, border=37))
    assert not verifying._show_flat([one], wanted)
    told = capsys.readouterr()
    assert "good within 1 level" in told.out
    assert "onnxruntime: at the border flat pictures are off by up to 37 levels, those of the float network by 20" in (
        " ".join(told.err.split())
    )
    verifying._show_flat([replace(one, flat=replace(wanted, border=36))], wanted)
    verifying._show_flat([one], None)
    assert capsys.readouterr().err == ""


def test_what_is_all_border_gets_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = FlatPictures(255, 0, 0.0, 0.0, 0)
    border = FlatPictures(0, 90, 70.0, -255.0, 255, judged=False)
    assert not verifying._show_flat([Verification("litert", 0, 0.0, math.inf, (), True, border)], wanted)
    told = capsys.readouterr()
    assert "as run         all border, not judged\n" in told.out
    assert told.err == ""


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("edsr_x2.safetensors", "not of one shape: edsr x2, abpn x3"),
        ("abpn_x3_8.safetensors", "this one is quantised"),
        ("missing.safetensors", "no such file"),
    ],
)
def test_a_wrong_checkpoint_is_one_line(
    checkpoint: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(place)
    told = fails("verify", "abpn_x3_8.safetensors", "--float", checkpoint)
    assert message in told
