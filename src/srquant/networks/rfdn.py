"""RFDN: residual feature distillation network (Liu et al., ECCV workshops 2020), winner of AIM 2020.

Paper: https://arxiv.org/abs/2009.11551. Key names as in https://github.com/njulj/RFDN. Each block keeps a 1x1
convolution's view of its features three times, joins them and weights them by a spatial attention; values in 0..255.
Pictures of less than 15 pixels a side are accepted, see `srquant.networks.layers.Grow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import SpatialAttention
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_SLOPE = 0.05


@dataclass(frozen=True, kw_only=True)
class RFDNConfig(NetworkConfig):
    """Shape of an RFDN.

    Attributes:
        scale: 2, 3 or 4.
        blocks: Residual feature distillation blocks.
        width: Features; each step of a block keeps half of them.
        squeezed: Channels inside the attention.
    """

    blocks: int = 4
    width: int = 50
    squeezed: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("width", 2, self.width)


class FeatureDistillationBlock(nn.Module):
    """Three times keep and convolve with a skip, join, attend; [N, width, H, W] to the same shape."""

    def __init__(self, config: RFDNConfig) -> None:
        super().__init__()
        width, kept = config.width, config.width // 2
        for step in (1, 2, 3):
            self.add_module(f"c{step}_d", nn.Conv2d(width, kept, 1))
            self.add_module(f"act{step}_d", nn.LeakyReLU(_SLOPE))
            self.add_module(f"c{step}_r", nn.Conv2d(width, width, 3, padding=1))
            self.add_module(f"act{step}_r", nn.LeakyReLU(_SLOPE))
        self.c4 = nn.Conv2d(width, kept, 3, padding=1)
        self.act4 = nn.LeakyReLU(_SLOPE)
        self.c5 = nn.Conv2d(4 * kept, width, 1)
        self.esa = SpatialAttention(width, config.squeezed, deep=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        layer = self.get_submodule
        distilled = []
        for step in (1, 2, 3):
            distilled.append(layer(f"act{step}_d")(layer(f"c{step}_d")(x)))
            x = layer(f"act{step}_r")(layer(f"c{step}_r")(x) + x)
        distilled.append(self.act4(self.c4(x)))
        return self.esa.attend(self.c5(torch.cat(distilled, dim=1)))


class RFDN(SRNetwork[RFDNConfig]):
    """RFDN of any depth and width. The attention looks far over the picture: tiles are never exact."""

    name = "rfdn"
    config_type = RFDNConfig

    def __init__(self, config: RFDNConfig) -> None:
        super().__init__(config, peak=255.0)
        width = config.width
        self.fea_conv = nn.Conv2d(COLOURS, width, 3, padding=1)
        for number in range(1, config.blocks + 1):
            self.add_module(f"B{number}", FeatureDistillationBlock(config))
        self.c = nn.Sequential(nn.Conv2d(config.blocks * width, width, 1), nn.LeakyReLU(_SLOPE))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(width, COLOURS * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..255 to [N, 3, scale*H, scale*W] in 0..255 (not clamped)."""
        shallow = self.fea_conv(x)
        features = shallow
        outputs = []
        for number in range(1, self.config.blocks + 1):
            features = self.get_submodule(f"B{number}")(features)
            outputs.append(features)
        fused = self.LR_conv(self.c(torch.cat(outputs, dim=1)))
        return self.upsampler(fused + shallow)

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> RFDNConfig | None:
        squeezed, scaled = "B1.esa.conv1.weight", "upsampler.0.weight"
        if not {"fea_conv.weight", "B1.c1_d.weight", squeezed, scaled} <= state.keys():
            return None
        return RFDNConfig(
            scale=shuffle_factor(scaled, conv_shape(state, scaled)[0], COLOURS),
            blocks=count(state, "B#.c1_d.weight") - 1,
            width=conv_shape(state, "fea_conv.weight")[0],
            squeezed=conv_shape(state, squeezed)[0],
        )
