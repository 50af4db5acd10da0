"""Published weights load without flags and score what the manifest of the shared data says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from srquant.networks import SRNetwork
from srquant.networks.loading import load_network

LUMA_WEIGHTS = ["espcn_y_x2", "espcn_y_x4", "fsrcnn_y_x2", "fsrcnn_y_x4"]
WEIGHTS = ["edsr8_x2", "srresnet8_bn_x4", "abpn_x3", "xlsr_x3", "imdn_x2", "imdn_x4"]
WEIGHTS += ["plainusr_u_x2", "plainusr_u_x4", "plainusr_s_x4", "plainusr_x2", "plainusr_x4"]
WEIGHTS += ["span28_x4", "rlfn_x2", "rlfn_x4", "rfdn_aim_x4"]


def enlarge(network: SRNetwork, picture: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] to uint8 [scale*H,scale*W,3]."""
    peak = network.info.peak
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() * (peak / 255)
    with torch.no_grad():
        y = network(x)[0].permute(1, 2, 0) * (255 / peak)
    return y.clamp(0, 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("name", WEIGHTS)
def test_published_weights_score_their_published_psnr(name: str, shared: Path) -> None:
    from srquant.imaging import open_set
    from srquant.metrics import Protocol, psnr

    manifest = json.loads((shared / "data" / "MANIFEST.json").read_text())
    entry = manifest["files"][f"weights/{name}.safetensors"]
    network = load_network(shared / "data" / "weights" / f"{name}.safetensors")
    scale = network.info.scale
    assert scale == entry["scale"]
    assert (
        sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())
        == (entry["fp32_values"])
    )
    scores = []
    for pair in open_set(shared / "data" / "benchmarks" / "Set5", scale).pairs:
        lr, hr = pair.load(scale)
        scores.append(psnr(enlarge(network, lr), hr, Protocol.standard(scale)))
    assert float(np.mean(scores)) == pytest.approx(entry["measured_y_psnr"]["Set5"], abs=0.002)


@pytest.mark.parametrize("name", LUMA_WEIGHTS)
def test_published_luma_weights_score_what_was_measured(name: str, shared: Path) -> None:
    """The manifest's route: luma in float, Y of both pictures rounded; the route of `evaluate` is near it."""
    from srquant.engines.float_torch import FloatEngine
    from srquant.imaging import open_set
    from srquant.metrics import Protocol, luma, psnr
    from srquant.upscaling import upscale_rgb

    entry = json.loads((shared / "data" / "MANIFEST.json").read_text())["files"][f"weights/{name}.safetensors"]
    network = load_network(shared / "data" / "weights" / f"{name}.safetensors")
    scale = network.info.scale
    assert (scale, network.info.channels) == (entry["scale"], 1)
    found, evaluated = [], []
    for pair in open_set(shared / "data" / "benchmarks" / "Set5", scale).pairs:
        lr, hr = pair.load(scale)
        y = torch.from_numpy(lr @ np.array([0.299, 0.587, 0.114]) / 255)[None, None].float()
        with torch.no_grad():
            enlarged = network(y)[0, 0].double().clamp(0, 1).numpy() * 219 + 16
        error = (np.rint(enlarged) - np.rint(luma(hr)))[scale:-scale, scale:-scale]
        found.append(10 * np.log10(255**2 / np.square(error).mean()))
        evaluated.append(psnr(upscale_rgb(FloatEngine(network), lr, None), hr, Protocol.standard(scale)))
    wanted = entry["measured_y_psnr"]["Set5 MATLAB LR"]
    assert float(np.mean(found)) == pytest.approx(wanted, abs=0.001)
    assert float(np.mean(evaluated)) == pytest.approx(wanted, abs=0.03)


def test_other_published_files_are_unknown_not_broken(shared: Path) -> None:
    for path in sorted((shared / "data" / "weights").glob("*.safetensors")):
        if path.stem not in WEIGHTS + LUMA_WEIGHTS:
            with pytest.raises(ValueError, match="no known network has these"):
                load_network(path)
