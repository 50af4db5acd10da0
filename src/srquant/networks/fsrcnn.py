"""FSRCNN: fast super-resolution network (Dong et al., ECCV 2016), for luma.

Paper: https://arxiv.org/abs/1608.00367, section 3: FSRCNN(d, s, m). The deconvolution of the paper is a 1x1
convolution and a pixel shuffle, as in the port https://github.com/Saafke/FSRCNN_Tensorflow, whose one bias behind the
shuffle is here the bias of all outputs of that convolution: the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from srquant.errors import UserError
from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.reading import LUMA, conv_shape, count, shuffle_factor


@dataclass(frozen=True, kw_only=True)
class FSRCNNConfig(NetworkConfig):
    """Shape of an FSRCNN.

    Attributes:
        scale: 2, 3 or 4.
        width: Features outside, d of the paper.
        shrunk: Features inside, s.
        layers: 3x3 convolutions inside, m.
    """

    width: int = 56
    shrunk: int = 12
    layers: int = 4


class FSRCNN(SRNetwork[FSRCNNConfig]):
    """FSRCNN of any size: feature extraction, shrinking, mapping, expanding, enlarging."""

    name = "fsrcnn"
    config_type = FSRCNNConfig

    def __init__(self, config: FSRCNNConfig) -> None:
        super().__init__(config, channels=LUMA)
        width, shrunk = config.width, config.shrunk
        sizes = [(LUMA, width, 5), (width, shrunk, 1), *[(shrunk, shrunk, 3)] * config.layers, (shrunk, width, 1)]
        modules: list[nn.Module] = []
        for before, after, kernel in sizes:
            modules += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.PReLU(after)]
        self.body = nn.Sequential(*modules)
        self.tail = nn.Conv2d(width, LUMA * config.scale**2, 1)
        self.shuffle = nn.PixelShuffle(config.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map luma [N, 1, H, W] in 0..1 to [N, 1, scale*H, scale*W] (not clamped)."""
        return self.shuffle(self.tail(self.body(x)))

    @classmethod
    def entries(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries, with the single bias of the port given to every output of the last convolution."""
        if "bias" not in state or "tail.bias" in state:
            return dict(state)
        rest = {key: tensor for key, tensor in state.items() if key != "bias"}
        return rest | {"tail.bias": state["bias"].expand(conv_shape(state, "tail.weight")[0])}

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> FSRCNNConfig | None:
        if not {"body.0.weight", "body.1.weight", "tail.weight"} <= state.keys():
            return None
        if "bias" in state and list(state["bias"].shape) != [1]:
            raise UserError(f"'bias' has shape {list(state['bias'].shape)}, expected [1]")
        return FSRCNNConfig(
            scale=shuffle_factor("tail.weight", conv_shape(state, "tail.weight")[0], LUMA),
            width=conv_shape(state, "body.0.weight")[0],
            shrunk=conv_shape(state, "body.2.weight")[0],
            layers=count(state, "body.#.weight") // 2 - 3,
        )
