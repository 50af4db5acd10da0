"""ECBSR: edge-oriented convolution blocks for real-time super-resolution on mobiles (Zhang et al., ACM MM 2021).

Paper: https://dl.acm.org/doi/10.1145/3474085.3475291, section 3. For luma, key names as in
https://github.com/xindongzhang/ECBSR, both for the training form and for the plain one (`PlainSR`). MmCc: m blocks
between the first and the last, width c. The code trains on luma in studio range (16..235) held in 0..255; here luma is
full range for every network. Its optional identity branch, off by default, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from srquant.networks.collapsing import Collapsible, collapse
from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import Anchor
from srquant.networks.reading import LUMA, conv_shape, count, shuffle_factor

_SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
_SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_WIDER = 2
"""Features inside the 1x1-3x3 branch, per output."""
_SMALL = 1e-3
"""Spread of the first factors and biases of the edge filters."""


@dataclass(frozen=True, kw_only=True)
class ECBSRConfig(NetworkConfig):
    """Shape and form of an ECBSR.

    Attributes:
        scale: 2, 3 or 4.
        blocks: Blocks between the first and the last, m of the paper.
        width: Features, c.
        collapsed: Whether this is the plain form.
    """

    blocks: int = 4
    width: int = 16
    collapsed: bool = False


class WideBranch(nn.Module):
    """A 1x1 convolution to `inside` features and a 3x3 convolution."""

    def __init__(self, inputs: int, inside: int, outputs: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(inputs, inside, 1), nn.Conv2d(inside, outputs, 3)
        assert first.bias is not None
        assert second.bias is not None
        self.k0, self.b0, self.k1, self.b1 = first.weight, first.bias, second.weight, second.bias

    def collapse(self) -> tuple[Tensor, Tensor]:
        """Weight [O, I, 3, 3] and bias [O] of both; what lies outside the picture between them counts as `b0`."""
        weight = torch.einsum("omkl,mi->oikl", self.k1, self.k0[..., 0, 0])
        return weight, self.b1 + torch.einsum("omkl,m->o", self.k1, self.b0)


class EdgeBranch(nn.Module):
    """A 1x1 convolution and a fixed 3x3 edge filter, scaled per output."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, edge: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 1)
        assert first.bias is not None
        self.k0, self.b0 = first.weight, first.bias
        self.scale = nn.Parameter(torch.randn(outputs, 1, 1, 1) * _SMALL)
        self.bias = nn.Parameter(torch.randn(outputs) * _SMALL)
        self.register_buffer("mask", torch.tensor(edge).repeat(outputs, 1, 1, 1))

    def collapse(self) -> tuple[Tensor, Tensor]:
        """Weight [O, I, 3, 3] and bias [O] of both; what lies outside the picture between them counts as `b0`."""
        edge = self.scale * self.mask
        return edge * self.k0, self.bias + edge.sum((1, 2, 3)) * self.b0


class EdgeBlock(Collapsible):
    """Five branches on one input, added: 3x3, 1x1-3x3, 1x1-Sobel in x and y, 1x1-Laplacian; then PReLU, or nothing.

    The branches pad the value that zero padding of their input gives behind the 1x1 convolution, its bias. So they
    are one 3x3 convolution at the picture's edge, too.
    """

    def __init__(self, inputs: int, outputs: int, *, activated: bool) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv1x1_3x3 = WideBranch(inputs, _WIDER * outputs, outputs)
        self.conv1x1_sbx = EdgeBranch(inputs, outputs, _SOBEL_X)
        self.conv1x1_sby = EdgeBranch(inputs, outputs, _SOBEL_Y)
        self.conv1x1_lpl = EdgeBranch(inputs, outputs, _LAPLACIAN)
        self.act = nn.PReLU(outputs) if activated else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        features = self.convolve(x)
        return features if self.act is None else self.act(features)

    def collapse(self) -> tuple[Tensor, Tensor]:
        """The sum of all branches; section 3.3 of the paper."""
        assert self.conv3x3.bias is not None
        weight, bias = self.conv3x3.weight, self.conv3x3.bias
        for branch in (self.conv1x1_3x3, self.conv1x1_sbx, self.conv1x1_sby, self.conv1x1_lpl):
            more, shift = branch.collapse()
            weight, bias = weight + more, bias + shift
        return weight, bias

    def plain_state(self) -> dict[str, Tensor]:
        """A convolution and the slopes behind it."""
        state = {f"conv3x3.{key}": tensor for key, tensor in super().plain_state().items()}
        return state if self.act is None else state | {"act.weight": self.act.weight}


class PlainBlock(nn.Module):
    """What an `EdgeBlock` collapses to: a 3x3 convolution, then PReLU, or nothing."""

    def __init__(self, inputs: int, outputs: int, *, activated: bool) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.act = nn.PReLU(outputs) if activated else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        features = self.conv3x3(x)
        return features if self.act is None else self.act(features)


class ECBSR(SRNetwork[ECBSRConfig]):
    """ECBSR of any depth and width, in training form or collapsed."""

    name = "ecbsr"
    config_type = ECBSRConfig

    def __init__(self, config: ECBSRConfig) -> None:
        super().__init__(config, peak=255.0, channels=LUMA)
        kind, width, outputs = PlainBlock if config.collapsed else EdgeBlock, config.width, LUMA * config.scale**2
        blocks = [kind(width if block else LUMA, width, activated=True) for block in range(config.blocks + 1)]
        self.backbone = nn.Sequential(*blocks, kind(width, outputs, activated=False))
        self.anchor = Anchor(config.scale**2)
        self.upsampler = nn.PixelShuffle(config.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map luma [N, 1, H, W] in 0..255 to [N, 1, scale*H, scale*W] (not clamped)."""
        return self.upsampler(self.backbone(x) + self.anchor(x))

    def collapsed(self) -> SRNetwork[ECBSRConfig]:
        """The plain form."""
        return self if self.config.collapsed else collapse(self, replace(self.config, collapsed=True))

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> ECBSRConfig | None:
        if not {"backbone.0.conv3x3.weight", "backbone.0.act.weight"} <= state.keys():
            return None
        convolutions = count(state, "backbone.#.conv3x3.weight")
        last = f"backbone.{convolutions - 1}.conv3x3.weight"
        return ECBSRConfig(
            scale=shuffle_factor(last, conv_shape(state, last)[0], LUMA),
            blocks=convolutions - 2,
            width=conv_shape(state, "backbone.0.conv3x3.weight")[0],
            collapsed="backbone.0.conv1x1_3x3.k0" not in state,
        )
