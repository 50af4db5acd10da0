"""ESPCN: efficient sub-pixel convolutional network (Shi et al., CVPR 2016), for luma.

Paper: https://arxiv.org/abs/1609.05158, section 3. Three convolutions at low resolution and a pixel shuffle. As in
the port https://github.com/fannymonori/TF-ESPCN the hidden layers end in ReLU (tanh in the paper) and the enlarged
picture in tanh, whose values the training puts into 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.reading import LUMA, conv_shape, shuffle_factor


@dataclass(frozen=True, kw_only=True)
class ESPCNConfig(NetworkConfig):
    """Shape of an ESPCN.

    Attributes:
        scale: 2, 3 or 4.
        width: Features of the first convolution.
        shrunk: Features of the second one.
    """

    width: int = 64
    shrunk: int = 32


class ESPCN(SRNetwork[ESPCNConfig]):
    """ESPCN of any width."""

    name = "espcn"
    config_type = ESPCNConfig

    def __init__(self, config: ESPCNConfig) -> None:
        super().__init__(config, channels=LUMA)
        self.conv1 = nn.Conv2d(LUMA, config.width, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(config.width, config.shrunk, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(config.shrunk, LUMA * config.scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.scale)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Map luma [N, 1, H, W] in 0..1 to [N, 1, scale*H, scale*W] in -1..1, white below 1."""
        features = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.tanh(self.shuffle(self.conv3(features)))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> ESPCNConfig | None:
        if not {"conv1.weight", "conv2.weight", "conv3.weight"} <= state.keys():
            return None
        return ESPCNConfig(
            scale=shuffle_factor("conv3.weight", conv_shape(state, "conv3.weight")[0], LUMA),
            width=conv_shape(state, "conv1.weight")[0],
            shrunk=conv_shape(state, "conv2.weight")[0],
        )
