"""SRResNet: the generator of SRGAN (Ledig et al., CVPR 2017).

Paper: https://arxiv.org/abs/1609.04802. Residual blocks with batch normalisation and PReLU, 9x9 convolutions
at both ends, sub-pixel stages by 2. The network ends in (y + 1) / 2: it was trained for outputs in -1..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import ChannelAffine
from srquant.networks.reading import COLOURS, conv_shape, count


@dataclass(frozen=True, kw_only=True)
class SRResNetConfig(NetworkConfig):
    """Shape of an SRResNet.

    Attributes:
        scale: 2, 4 or 8.
        blocks: Residual blocks; 16 in the paper.
        width: Features.
        shared_slope: One PReLU slope per layer instead of one per channel.
    """

    scales = (2, 4, 8)

    blocks: int = 16
    width: int = 64
    shared_slope: bool = False


class ResidualBlock(nn.Module):
    """conv - BN - PReLU - conv - BN, plus the input; [N, width, H, W] to the same shape."""

    def __init__(self, width: int, slopes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(slopes)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        hidden = self.prelu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(hidden)) + x


class SRResNet(SRNetwork[SRResNetConfig]):
    """SRResNet of any depth and width; batch normalisation with eps 1e-5 and running statistics."""

    name = "srresnet"
    config_type = SRResNetConfig

    def __init__(self, config: SRResNetConfig) -> None:
        super().__init__(config)
        width = config.width
        slopes = 1 if config.shared_slope else width
        self.conv_in = nn.Conv2d(COLOURS, width, 9, padding=4)
        self.prelu_in = nn.PReLU(slopes)
        self.body = nn.Sequential(*[ResidualBlock(width, slopes) for _ in range(config.blocks)])
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_mid = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        for _ in range(config.scale.bit_length() - 1):
            stages += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(slopes)]
        self.up = nn.Sequential(*stages)
        self.conv_out = nn.Conv2d(width, COLOURS, 9, padding=4)
        self.to_unit = ChannelAffine([0.5] * COLOURS, [0.5] * COLOURS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..1 to [N, 3, scale*H, scale*W] in 0..1 (not clamped)."""
        features = self.prelu_in(self.conv_in(x))
        features = self.bn_mid(self.conv_mid(self.body(features))) + features
        return self.to_unit(self.conv_out(self.up(features)))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> SRResNetConfig | None:
        if not {"conv_in.weight", "prelu_in.weight", "body.0.bn1.weight", "up.0.weight"} <= state.keys():
            return None
        width, _ = conv_shape(state, "conv_in.weight")
        return SRResNetConfig(
            scale=2 ** ((count(state, "up.#.weight") + 2) // 3),
            blocks=count(state, "body.#.conv1.weight"),
            width=width,
            shared_slope=state["prelu_in.weight"].numel() == 1 < width,
        )
