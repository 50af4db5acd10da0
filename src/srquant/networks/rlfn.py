"""RLFN: residual local feature network (Kong et al., CVPR workshops 2022), winner of NTIRE 2022 in run time.

Paper: https://arxiv.org/abs/2205.07514. Key names as in https://github.com/bytedance/RLFN. Three plain convolutions, a
skip and a spatial attention per block; values in 0..255. Pictures of less than 15 pixels a side are accepted, see
`srquant.networks.layers.Grow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import SpatialAttention
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_SLOPE = 0.05


@dataclass(frozen=True, kw_only=True)
class RLFNConfig(NetworkConfig):
    """Shape of an RLFN.

    Attributes:
        scale: 2, 3 or 4.
        blocks: Residual local feature blocks.
        width: Features.
        middle: Features between the convolutions of a block.
        squeezed: Channels inside the attention.
    """

    blocks: int = 6
    width: int = 52
    middle: int = 52
    squeezed: int = 16


class LocalFeatureBlock(nn.Module):
    """Three convolutions, the skip, a 1x1 convolution, attention; [N, width, H, W] to the same shape."""

    def __init__(self, config: RLFNConfig) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(config.width, config.middle, 3, padding=1)
        self.act1 = nn.LeakyReLU(_SLOPE)
        self.c2_r = nn.Conv2d(config.middle, config.middle, 3, padding=1)
        self.act2 = nn.LeakyReLU(_SLOPE)
        self.c3_r = nn.Conv2d(config.middle, config.width, 3, padding=1)
        self.act3 = nn.LeakyReLU(_SLOPE)
        self.c5 = nn.Conv2d(config.width, config.width, 1)
        self.esa = SpatialAttention(config.width, config.squeezed, deep=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        features = self.act3(self.c3_r(self.act2(self.c2_r(self.act1(self.c1_r(x))))))
        return self.esa.attend(self.c5(features + x))


class RLFN(SRNetwork[RLFNConfig]):
    """RLFN of any depth and width. The attention looks far over the picture: tiles are never exact."""

    name = "rlfn"
    config_type = RLFNConfig

    def __init__(self, config: RLFNConfig) -> None:
        super().__init__(config, peak=255.0)
        self.conv_1 = nn.Conv2d(COLOURS, config.width, 3, padding=1)
        for number in range(1, config.blocks + 1):
            self.add_module(f"block_{number}", LocalFeatureBlock(config))
        self.conv_2 = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(config.width, COLOURS * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..255 to [N, 3, scale*H, scale*W] in 0..255 (not clamped)."""
        shallow = self.conv_1(x)
        features = shallow
        for number in range(1, self.config.blocks + 1):
            features = self.get_submodule(f"block_{number}")(features)
        return self.upsampler(self.conv_2(features) + shallow)

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> RLFNConfig | None:
        middle, squeezed, scaled = "block_1.c1_r.weight", "block_1.esa.conv1.weight", "upsampler.0.weight"
        if not {"conv_1.weight", "conv_2.weight", middle, squeezed, scaled} <= state.keys():
            return None
        return RLFNConfig(
            scale=shuffle_factor(scaled, conv_shape(state, scaled)[0], COLOURS),
            blocks=count(state, "block_#.c1_r.weight") - 1,
            width=conv_shape(state, "conv_1.weight")[0],
            middle=conv_shape(state, middle)[0],
            squeezed=conv_shape(state, squeezed)[0],
        )
