"""XLSR: extremely lightweight quantisation-robust network (Ayazoglu, CVPR workshops 2021).

Paper: https://arxiv.org/abs/2105.10288. Key names as in the port https://github.com/cxzhou95/XLSR.
Grouped convolutions, 1x1 mixers, one concatenation with shallow features, and a clip at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class XLSRConfig(NetworkConfig):
    """Shape of an XLSR.

    Attributes:
        scale: 2, 3 or 4.
        blocks: Grouped blocks.
        width: Features, a multiple of 4 (the number of branches and groups).
        shallow: Features of the side branch that skips the blocks.
    """

    blocks: int = 3
    width: int = 32
    shallow: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("width", _GROUPS, self.width, multiple_of=_GROUPS)


class ConvRelu(nn.Module):
    """Convolution and ReLU; [N, inputs, H, W] to [N, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        return self.relu(self.conv(x))


class GroupBlock(nn.Module):
    """Grouped 3x3 convolution, ReLU, 1x1 convolution; [N, width, H, W] to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(width, width, 3, padding=1, groups=_GROUPS)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return self.conv1(self.relu(self.conv0(x)))


class XLSR(SRNetwork[XLSRConfig]):
    """XLSR of any depth and width; clips to 0..1 before the shuffle."""

    name = "xlsr"
    config_type = XLSRConfig

    def __init__(self, config: XLSRConfig) -> None:
        super().__init__(config)
        width = config.width
        self.conv0_0 = ConvRelu(COLOURS, width // _GROUPS, 3)
        self.conv0_1 = ConvRelu(COLOURS, width // _GROUPS, 3)
        self.conv0_2 = ConvRelu(COLOURS, width // _GROUPS, 3)
        self.conv0_3 = ConvRelu(COLOURS, width // _GROUPS, 3)
        self.conv1 = nn.Conv2d(COLOURS, config.shallow, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.Gblocks = nn.Sequential(*[GroupBlock(width) for _ in range(config.blocks)])
        self.conv3 = ConvRelu(width + config.shallow, width, 1)
        self.conv4 = nn.Conv2d(width, COLOURS * config.scale**2, 3, padding=1)
        self.clip = nn.Hardtanh(0.0, 1.0)
        self.shuffle = nn.PixelShuffle(config.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..1 to [N, 3, scale*H, scale*W], clipped to 0..1."""
        branches = [self.conv0_0(x), self.conv0_1(x), self.conv0_2(x), self.conv0_3(x)]
        deep = self.Gblocks(self.conv2(torch.cat(branches, dim=1)))
        features = self.conv3(torch.cat([deep, self.conv1(x)], dim=1))
        return self.shuffle(self.clip(self.conv4(features)))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> XLSRConfig | None:
        if not {"conv0_0.conv.weight", "Gblocks.0.conv0.weight", "conv4.weight"} <= state.keys():
            return None
        return XLSRConfig(
            scale=shuffle_factor("conv4.weight", conv_shape(state, "conv4.weight")[0], COLOURS),
            blocks=count(state, "Gblocks.#.conv0.weight"),
            width=conv_shape(state, "conv2.weight")[0],
            shallow=conv_shape(state, "conv1.weight")[0],
        )
