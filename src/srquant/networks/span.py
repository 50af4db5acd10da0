"""SPAN: swift parameter-free attention network (Wan et al., CVPR workshops 2024), winner of NTIRE 2024.

Paper: https://arxiv.org/abs/2311.12770. The re-parameterised form with one 3x3 convolution (`eval_conv`) per layer,
key names as in https://github.com/Amazingren/NTIRE2025_ESR (team 46). The picture is centred and stretched to 255
inside. In the original code the activation works in place, so that the last part joined in front of the upsampler is
the first convolution of the last block *behind* its SiLU; here it is written that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import CentredSigmoid, ChannelAffine
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_MEAN = (0.4488, 0.4371, 0.4040)
_STRETCH = 255.0


@dataclass(frozen=True, kw_only=True)
class SPANConfig(NetworkConfig):
    """Shape of a SPAN.

    Attributes:
        scale: 2, 3 or 4.
        blocks: Attention blocks.
        width: Features.
        joined: Features of the 1x1 convolution in front of the upsampler.
    """

    blocks: int = 6
    width: int = 28
    joined: int = 20


class Collapsed(nn.Module):
    """One 3x3 convolution under the name that re-parameterisation gives it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]."""
        return self.eval_conv(x)


class AttentionBlock(nn.Module):
    """Three convolutions; the last one also weights its sum with the input, section 3.2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r = Collapsed(width, width)
        self.act1 = nn.SiLU()
        self.c2_r = Collapsed(width, width)
        self.act2 = nn.SiLU()
        self.c3_r = Collapsed(width, width)
        self.attention = CentredSigmoid()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, width, H, W] to the result and the first activation, both of that shape."""
        first = self.act1(self.c1_r(x))
        last = self.c3_r(self.act2(self.c2_r(first)))
        return (last + x) * self.attention(last), first


class SPAN(SRNetwork[SPANConfig]):
    """SPAN of any depth and width."""

    name = "span"
    config_type = SPANConfig

    def __init__(self, config: SPANConfig) -> None:
        super().__init__(config)
        width = config.width
        self.centre = ChannelAffine([_STRETCH] * COLOURS, [-_STRETCH * mean for mean in _MEAN])
        self.conv_1 = Collapsed(COLOURS, width)
        for number in range(1, config.blocks + 1):
            self.add_module(f"block_{number}", AttentionBlock(width))
        self.conv_2 = Collapsed(width, width)
        self.conv_cat = nn.Conv2d(4 * width, config.joined, 1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(config.joined, COLOURS * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..1 to [N, 3, scale*H, scale*W] in 0..1 (not clamped)."""
        shallow = self.conv_1(self.centre(x))
        first, activation = self.get_submodule("block_1")(shallow)
        deep = first
        for number in range(2, self.config.blocks + 1):
            deep, activation = self.get_submodule(f"block_{number}")(deep)
        joined = torch.cat([shallow, self.conv_2(deep), first, activation], dim=1)
        return self.upsampler(self.conv_cat(joined))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> SPANConfig | None:
        scaled = "upsampler.0.weight"
        if not {"conv_1.eval_conv.weight", "block_1.c1_r.eval_conv.weight", "conv_cat.weight", scaled} <= state.keys():
            return None
        return SPANConfig(
            scale=shuffle_factor(scaled, conv_shape(state, scaled)[0], COLOURS),
            blocks=count(state, "block_#.c1_r.eval_conv.weight") - 1,
            width=conv_shape(state, "conv_1.eval_conv.weight")[0],
            joined=conv_shape(state, "conv_cat.weight")[0],
        )
