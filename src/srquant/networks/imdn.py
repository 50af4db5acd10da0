"""IMDN: information multi-distillation network (Hui et al., ACM Multimedia 2019).

Paper: https://arxiv.org/abs/1909.11856. Key names as in https://github.com/Zheng222/IMDN. Each block sets a
quarter of the channels aside three times, weights what it kept by a channel attention and fuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import ContrastAttention
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_SLOPE = 0.05


@dataclass(frozen=True, kw_only=True)
class IMDNConfig(NetworkConfig):
    """Shape of an IMDN.

    Attributes:
        scale: 2, 3, 4 or 8.
        blocks: Multi-distillation blocks.
        width: Features, a multiple of 4; a quarter is set aside at each step.
        reduction: The attention's bottleneck has width // reduction channels.
    """

    scales = (2, 3, 4, 8)

    blocks: int = 6
    width: int = 64
    reduction: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("width", max(4, self.reduction), self.width, multiple_of=4)


class DistillationBlock(nn.Module):
    """Three times convolve and split, attend, fuse, plus the input; [N, width, H, W] to the same shape."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        kept = width // 4
        passed = width - kept
        self.parts = [kept, passed]
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.act1 = nn.LeakyReLU(_SLOPE)
        self.c2 = nn.Conv2d(passed, width, 3, padding=1)
        self.act2 = nn.LeakyReLU(_SLOPE)
        self.c3 = nn.Conv2d(passed, width, 3, padding=1)
        self.act3 = nn.LeakyReLU(_SLOPE)
        self.c4 = nn.Conv2d(passed, kept, 3, padding=1)
        self.cca = ContrastAttention(width, reduction)
        self.c5 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        first = torch.split(self.act1(self.c1(x)), self.parts, dim=1)
        second = torch.split(self.act2(self.c2(first[1])), self.parts, dim=1)
        third = torch.split(self.act3(self.c3(second[1])), self.parts, dim=1)
        distilled = torch.cat([first[0], second[0], third[0], self.c4(third[1])], dim=1)
        return self.c5(distilled * self.cca(distilled)) + x


class IMDN(SRNetwork[IMDNConfig]):
    """IMDN of any depth and width. The attention looks at the whole picture: tiles are never exact."""

    name = "imdn"
    config_type = IMDNConfig

    def __init__(self, config: IMDNConfig) -> None:
        super().__init__(config)
        width = config.width
        self.fea_conv = nn.Conv2d(COLOURS, width, 3, padding=1)
        for number in range(1, config.blocks + 1):
            self.add_module(f"IMDB{number}", DistillationBlock(width, config.reduction))
        self.c = nn.Sequential(nn.Conv2d(config.blocks * width, width, 1), nn.LeakyReLU(_SLOPE))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(width, COLOURS * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..1 to [N, 3, scale*H, scale*W] in 0..1 (not clamped)."""
        shallow = self.fea_conv(x)
        features = shallow
        outputs = []
        for number in range(1, self.config.blocks + 1):
            features = self.get_submodule(f"IMDB{number}")(features)
            outputs.append(features)
        fused = self.LR_conv(self.c(torch.cat(outputs, dim=1)))
        return self.upsampler(fused + shallow)

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> IMDNConfig | None:
        bottleneck, scaled = "IMDB1.cca.conv_du.0.weight", "upsampler.0.weight"
        if not {"fea_conv.weight", "LR_conv.weight", bottleneck, scaled} <= state.keys():
            return None
        width, _ = conv_shape(state, "fea_conv.weight")
        return IMDNConfig(
            scale=shuffle_factor(scaled, conv_shape(state, scaled)[0], COLOURS),
            blocks=count(state, "IMDB#.c1.weight") - 1,
            width=width,
            reduction=max(1, width // conv_shape(state, bottleneck)[0]),
        )
