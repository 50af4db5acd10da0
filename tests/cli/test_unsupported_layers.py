"""`srquant quantize` of a network with a layer that has no integer form: one line names it and says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small_quantized import noise
from torch import Tensor, nn

from srquant.imaging import Picture, write_picture
from srquant.networks import NETWORKS
from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.loading import save_network

LAYERS = {
    "GELU": nn.GELU(),
    "AvgPool2d": nn.AvgPool2d(3, 1, 1),
    "ConvTranspose2d": nn.ConvTranspose2d(6, 6, 3, padding=1),
}


@dataclass(frozen=True, kw_only=True)
class StrangeConfig(NetworkConfig):
    kind: int = 1


class Strange(SRNetwork[StrangeConfig]):
    name = "strange"
    config_type = StrangeConfig

    def __init__(self, config: StrangeConfig) -> None:
        super().__init__(config)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.odd = list(LAYERS.values())[config.kind - 1]
        self.last = nn.Conv2d(6, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.kind = nn.Parameter(torch.zeros(config.kind))

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.last(self.odd(self.first(x))))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> StrangeConfig | None:
        return StrangeConfig(scale=2, kind=len(state["kind"])) if "kind" in state else None


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.setitem(NETWORKS, "strange", Strange)
    network = Strange(StrangeConfig(scale=2, kind=list(LAYERS).index(kind) + 1))
    save_network(network, tmp_path / "net.safetensors")
    write_picture(tmp_path / "p.png", Picture(noise(48, 48), None, False))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told = fails("quantize", "net.safetensors", "-o", "q.safetensors", "--data", ".")
    assert re.search(rf"'odd' \({kind}\) has no integer form; write the network with additions", told), told
    assert sorted(tmp_path.rglob("*")) == before
