"""RDN: residual dense network (Zhang et al., CVPR 2018).

Paper: https://arxiv.org/abs/1802.08797. Key names and range (0..255, no mean shift) as in the RDN of
https://github.com/sanghyun-son/EDSR-PyTorch, which PAMS and DDTB build on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor


@dataclass(frozen=True, kw_only=True)
class RDNConfig(NetworkConfig):
    """Shape of an RDN. The defaults are configuration B; A is `blocks=20, layers=6, growth=32`.

    Attributes:
        scale: 2, 3 or 4; 4 is two shuffles by 2.
        blocks: Residual dense blocks, D.
        layers: Convolutions per block, C.
        growth: Channels that each of them adds, G.
        width: Features between the blocks, G0.
    """

    blocks: int = 16
    layers: int = 8
    growth: int = 64
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("blocks * layers", 1, self.blocks * self.layers)


class DenseConv(nn.Module):
    """Convolution and ReLU, appended to the input: [N, C, H, W] to [N, C + growth, H, W]."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(inputs, growth, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        return torch.cat([x, self.conv(x)], dim=1)


class DenseBlock(nn.Module):
    """Dense convolutions, 1x1 local fusion, plus the input; [N, width, H, W] to the same shape."""

    def __init__(self, config: RDNConfig) -> None:
        super().__init__()
        width, growth = config.width, config.growth
        self.convs = nn.Sequential(*[DenseConv(width + c * growth, growth) for c in range(config.layers)])
        self.LFF = nn.Conv2d(width + config.layers * growth, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return self.LFF(self.convs(x)) + x


class RDN(SRNetwork[RDNConfig]):
    """RDN of any configuration; 3x3 convolutions, 1x1 fusions."""

    name = "rdn"
    config_type = RDNConfig

    def __init__(self, config: RDNConfig) -> None:
        super().__init__(config, peak=255.0)
        width, growth = config.width, config.growth
        self.SFENet1 = nn.Conv2d(COLOURS, width, 3, padding=1)
        self.SFENet2 = nn.Conv2d(width, width, 3, padding=1)
        self.RDBs = nn.ModuleList([DenseBlock(config) for _ in range(config.blocks)])
        self.GFF = nn.Sequential(nn.Conv2d(config.blocks * width, width, 1), nn.Conv2d(width, width, 3, padding=1))
        stages: list[nn.Module] = []
        channels = width
        for factor in (2, 2) if config.scale == 4 else (config.scale,):
            stages += [nn.Conv2d(channels, growth * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
            channels = growth
        self.UPNet = nn.Sequential(*stages, nn.Conv2d(growth, COLOURS, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..255 to [N, 3, scale*H, scale*W] in 0..255 (not clamped)."""
        shallow = self.SFENet1(x)
        features = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            features = block(features)
            outputs.append(features)
        return self.UPNet(self.GFF(torch.cat(outputs, dim=1)) + shallow)

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> RDNConfig | None:
        if not {"SFENet1.weight", "RDBs.0.convs.0.conv.0.weight", "UPNet.0.weight"} <= state.keys():
            return None
        growth, width = conv_shape(state, "RDBs.0.convs.0.conv.0.weight")
        factor = shuffle_factor("UPNet.0.weight", conv_shape(state, "UPNet.0.weight")[0], growth)
        return RDNConfig(
            scale=factor ** (count(state, "UPNet.#.weight") // 2),
            blocks=count(state, "RDBs.#.LFF.weight"),
            layers=count(state, "RDBs.0.convs.#.conv.0.weight"),
            growth=growth,
            width=width,
        )
