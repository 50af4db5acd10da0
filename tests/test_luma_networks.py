"""Networks for luma, and networks in training form, through the whole house: quantise, store, export, run, score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import srquant
from srquant import CalibrationConfig
from srquant.cli.app import app
from srquant.engines import open_engine
from srquant.evaluation.verification import drawn_picture, verify
from srquant.imaging import Picture, read_picture, write_picture
from srquant.imaging.colour import luma
from srquant.networks import (
    NETWORKS,
    ECBSRConfig,
    ESPCNConfig,
    FSRCNNConfig,
    NetworkConfig,
    QuickSRNetConfig,
    SESRConfig,
    SRNetwork,
)
from srquant.networks.loading import load_network, save_network
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork, save_artefact
from srquant.quantizers.artefact import load_artefact
from srquant.upscaling import upscale_rgb

CONFIGS: dict[str, NetworkConfig] = {
    "espcn": ESPCNConfig(scale=2, width=6, shrunk=4),
    "fsrcnn": FSRCNNConfig(scale=2, width=8, shrunk=4, layers=1),
    "sesr": SESRConfig(scale=2, blocks=2, width=4, expanded=8),
    "sesr_rgb": SESRConfig(scale=3, blocks=1, width=6, colours=3, prelu=False, expanded=8),
    "quicksrnet": QuickSRNetConfig(scale=2, width=6, layers=2),
    "quicksrnet_anchored": QuickSRNetConfig(scale=3, width=6, layers=1, anchored=True),
    "ecbsr": ECBSRConfig(scale=2, blocks=1, width=4),
}
LUMA = ("espcn", "fsrcnn", "sesr", "ecbsr")
CROPS = CalibrationConfig(images=4, crop=24)


def fresh(key: str) -> SRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return NETWORKS[key.partition("_")[0]].from_config(CONFIGS[key]).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luma")
    for i in range(4):
        (folder / "pictures").mkdir(exist_ok=True)
        write_picture(folder / "pictures" / f"{i}.png", Picture(drawn_picture(3, 60 + i, 72)))
    return folder


@pytest.fixture(scope="module")
def quantized(place: Path) -> dict[str, QuantizedNetwork]:
    return {key: srquant.quantize(fresh(key), place / "pictures", calibration=CROPS) for key in CONFIGS}


@pytest.mark.parametrize("key", CONFIGS)
def test_engines_equal_the_reference(key: str, quantized: dict[str, QuantizedNetwork]) -> None:
    pytest.importorskip("onnxruntime")
    network = quantized[key]
    assert network.info.channels == (1 if key in LUMA else 3)
    (found,) = verify(network, ["onnxruntime"], progress=Silent())
    assert found.promised
    assert not found.broken
    pixels = drawn_picture(3, 20, 24)
    reference = upscale_rgb(open_engine(network, "reference"), pixels)
    assert reference.std() > 2
    for name in ("torch", "simulate"):
        difference = np.abs(upscale_rgb(open_engine(network, name), pixels).astype(int) - reference)
        assert difference.mean() < 0.1, name


@pytest.mark.parametrize("key", CONFIGS)
def test_the_quantised_network_stays_near_the_float_one(key: str, quantized: dict[str, QuantizedNetwork]) -> None:
    pixels = drawn_picture(3, 40, 48)
    wanted = upscale_rgb(open_engine(fresh(key), "torch"), pixels).astype(int)
    found = upscale_rgb(open_engine(quantized[key], "simulate"), pixels)
    assert np.abs(found - wanted).mean() < 4


@pytest.mark.parametrize("key", CONFIGS)
def test_artefacts_hold_the_plain_form_and_come_back(
    key: str, quantized: dict[str, QuantizedNetwork], tmp_path: Path
) -> None:
    network = quantized[key]
    assert network.network_config.get("collapsed", True) is True
    save_artefact(network, tmp_path / "a.safetensors")
    again = load_artefact(tmp_path / "a.safetensors")
    picture = torch.from_numpy(drawn_picture(network.info.channels, 12, 14)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        assert torch.equal(again(picture), network(picture))
    save_artefact(again, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("key", ["sesr", "ecbsr"])
def test_both_forms_quantise_to_the_same_network(key: str, quantized: dict[str, QuantizedNetwork], place: Path) -> None:
    plain = srquant.quantize(fresh(key).collapsed(), place / "pictures", calibration=CROPS)
    picture = torch.from_numpy(drawn_picture(1, 12, 14)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        assert torch.equal(plain(picture), quantized[key](picture))
    assert plain.network_config == quantized[key].network_config


@pytest.mark.parametrize("key", ["sesr", "ecbsr", "espcn"])
def test_float_networks_are_exported_in_the_plain_form(key: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    network = fresh(key)
    srquant.export(network, tmp_path / "float.onnx")
    pixels = drawn_picture(3, 16, 20)
    found = upscale_rgb(open_engine(srquant.load(tmp_path / "float.onnx"), "onnxruntime"), pixels)
    wanted = upscale_rgb(open_engine(network, "torch"), pixels)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_the_training_form_is_stored_as_it_is(tmp_path: Path) -> None:
    network = fresh("sesr")
    save_network(network, tmp_path / "sesr.safetensors")
    loaded = load_network(tmp_path / "sesr.safetensors")
    assert loaded.config == network.config
    assert not network.config.collapsed  # pyright: ignore[reportAttributeAccessIssue]


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_takes_luma_networks_from_end_to_end(place: Path, tmp_path: Path) -> None:
    weights, artefact, source = tmp_path / "w.safetensors", tmp_path / "q.safetensors", place / "pictures" / "0.png"
    save_network(fresh("sesr"), weights)
    told = run("info", weights)
    assert "luma (Y of full-range BT.601)" in told
    plain, wide = (sum(p.numel() for p in n.parameters()) for n in (fresh("sesr").collapsed(), fresh("sesr")))
    assert f"{plain:,} ({wide:,} in the training form, which this file holds)" in told
    run("quantize", weights, "-o", artefact, "--data", place / "pictures", "--crop", 24)
    run("verify", artefact, "--engine", "torch", "--picture", source)
    run("upscale", source, "-o", tmp_path / "big.png", "-m", artefact, "--engine", "torch")
    wanted = upscale_rgb(open_engine(srquant.load(artefact), "torch"), read_picture(source).rgb)
    assert np.array_equal(read_picture(tmp_path / "big.png").rgb, wanted)
    assert "pictures" in run("evaluate", artefact, "--data", place / "pictures", "--engine", "torch")
    write_picture(tmp_path / "grey.png", Picture(luma(read_picture(source).rgb).repeat(3, axis=2), grey=True))
    run("upscale", tmp_path / "grey.png", "-o", tmp_path / "big_grey.png", "-m", artefact, "--engine", "torch")
    assert read_picture(tmp_path / "big_grey.png").grey
