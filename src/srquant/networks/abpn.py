"""ABPN: anchor-based plain net (Du et al., CVPR workshops 2021; winner of the Mobile AI 2021 challenge).

Paper: https://arxiv.org/abs/2105.09120. Layout `base7` of https://github.com/NJU-Jet/SR_Mobile_Quantization:
plain 3x3 convolutions learn the difference to nearest-neighbour enlargement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import Anchor
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor


@dataclass(frozen=True, kw_only=True)
class ABPNConfig(NetworkConfig):
    """Shape of an ABPN.

    Attributes:
        scale: 2, 3 or 4.
        width: Features.
        layers: 3x3 convolutions in all, 3 or more; the last two have 3*scale^2 outputs.
    """

    width: int = 28
    layers: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("layers", 3, self.layers)


class ABPN(SRNetwork[ABPNConfig]):
    """ABPN of any depth and width; ends in a clip to 0..255."""

    name = "abpn"
    config_type = ABPNConfig

    def __init__(self, config: ABPNConfig) -> None:
        super().__init__(config, peak=255.0)
        outputs = COLOURS * config.scale**2
        sizes = [COLOURS] + [config.width] * (config.layers - 2) + [outputs, outputs]
        modules: list[nn.Module] = []
        for before, after in pairwise(sizes):
            modules += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*modules[:-1])
        self.anchor = Anchor(config.scale**2)
        self.shuffle = nn.PixelShuffle(config.scale)
        self.clip = nn.Hardtanh(0.0, 255.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..255 to [N, 3, scale*H, scale*W], clipped to 0..255."""
        return self.clip(self.shuffle(self.body(x) + self.anchor(x)))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> ABPNConfig | None:
        convolutions = (count(state, "body.#.weight") + 1) // 2
        plain = re.compile(r"body\.\d*[02468]\.(weight|bias)")
        if convolutions < 3 or "body.0.weight" not in state or not all(map(plain.fullmatch, state)):
            return None
        last = f"body.{2 * convolutions - 2}.weight"
        return ABPNConfig(
            scale=shuffle_factor(last, conv_shape(state, last)[0], COLOURS),
            width=conv_shape(state, "body.0.weight")[0],
            layers=convolutions,
        )
