"""Published weights load without flags and score what the manifest of the shared data says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from srquant.networks import SRNetwork
from srquant.networks.loading import load_network

WEIGHTS = ["edsr8_x2", "srresnet8_bn_x4", "abpn_x3", "xlsr_x3", "imdn_x2", "imdn_x4"]


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
    assert float(np.mean(scores)) == pytest.approx(entry["measured_y_psnr"]["Set5"], abs=0.01)


def test_other_published_files_are_unknown_not_broken(shared: Path) -> None:
    for path in sorted((shared / "data" / "weights").glob("*.safetensors")):
        if path.stem not in WEIGHTS:
            with pytest.raises(ValueError, match="no known network has these"):
                load_network(path)
