"""QuickSRNet: plain networks that keep every feature within 0..1 (Berger et al., CVPR workshops 2023).

Paper: https://arxiv.org/abs/2303.04336. Layout and key names as in https://github.com/quic/aimet-model-zoo: plain 3x3
convolutions, each followed by a clip to 0..1, that start as the identity; the last clip comes before the pixel
shuffle. Small, medium: width 32, 2 or 5 layers inside; large: width 64, 11 layers, and a trained 1x1 convolution of
the picture is added to the last one. The port's 1.5x variant is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.reading import COLOURS, conv_shape, count, shuffle_factor

_PORT_ANCHOR = "anchor.net."


@dataclass(frozen=True, kw_only=True)
class QuickSRNetConfig(NetworkConfig):
    """Shape of a QuickSRNet.

    Attributes:
        scale: 2, 3 or 4.
        width: Features, 3 or more.
        layers: Convolutions between the first and the last one.
        anchored: Whether a 1x1 convolution of the picture, at first nearest enlargement, is added to the last one.
    """

    width: int = 32
    layers: int = 2
    anchored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("width", COLOURS, self.width)


class QuickSRNet(SRNetwork[QuickSRNetConfig]):
    """QuickSRNet of any depth and width; clips to 0..1 before the shuffle."""

    name = "quicksrnet"
    config_type = QuickSRNetConfig

    def __init__(self, config: QuickSRNetConfig) -> None:
        super().__init__(config)
        width, outputs = config.width, COLOURS * config.scale**2
        modules: list[nn.Module] = []
        for layer in range(config.layers + 1):
            modules += [nn.Conv2d(width if layer else COLOURS, width, 3, padding=1), nn.Hardtanh(0.0, 1.0)]
        self.cnn = nn.Sequential(*modules)
        self.conv_last = nn.Conv2d(width, outputs, 3, padding=1)
        self.anchor = nn.Conv2d(COLOURS, outputs, 1) if config.anchored else None
        self.clip = nn.Hardtanh(0.0, 1.0)
        self.shuffle = nn.PixelShuffle(config.scale)
        self._start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] in 0..1 to [N, 3, scale*H, scale*W], clipped to 0..1."""
        features = self.conv_last(self.cnn(x))
        if self.anchor is not None:
            features = self.anchor(x) + features
        return self.shuffle(self.clip(features))

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        """Add to the random weights what makes a fresh network nearest enlargement."""
        for module in self.cnn:
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(start := torch.empty_like(module.weight))
                module.weight += start
        repeated = torch.eye(COLOURS).repeat_interleave(self.config.scale**2, dim=0)
        if self.anchor is not None:
            self.anchor.weight.copy_(repeated[..., None, None])
            nn.init.zeros_(self.anchor.bias)  # pyright: ignore[reportArgumentType]
        else:
            self.conv_last.weight[:, :COLOURS, 1, 1] += repeated

    @classmethod
    def entries(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries; the port's anchor is a convolution inside a module of its own."""
        return {
            f"anchor.{key.removeprefix(_PORT_ANCHOR)}" if key.startswith(_PORT_ANCHOR) else key: tensor
            for key, tensor in state.items()
        }

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> QuickSRNetConfig | None:
        if not {"cnn.0.weight", "conv_last.weight"} <= state.keys():
            return None
        return QuickSRNetConfig(
            scale=shuffle_factor("conv_last.weight", conv_shape(state, "conv_last.weight")[0], COLOURS),
            width=conv_shape(state, "cnn.0.weight")[0],
            layers=(count(state, "cnn.#.weight") + 1) // 2 - 1,
            anchored=any(key.startswith("anchor.") for key in state),
        )
