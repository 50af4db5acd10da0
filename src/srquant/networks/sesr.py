"""SESR: super-efficient super-resolution by collapsible linear blocks (Bhardwaj et al., MLSys 2022).

Paper: https://arxiv.org/abs/2103.09404, section 3. For luma as in https://github.com/ARM-software/sesr, for RGB as
AIMET's port (https://github.com/quic/aimet-model-zoo), whose key names are used. M3, M5, M7, M11: width 16 and so many
blocks; XL: width 32, 11 blocks. Deviations from the official code: the expanding convolution has no bias and the
squeezing one has (there the biases leak into the collapsed kernel), and x4 is one pixel shuffle, not two by 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.networks.collapsing import Collapsible, collapse
from srquant.networks.info import NetworkConfig, SRNetwork
from srquant.networks.layers import Anchor, ChannelAffine
from srquant.networks.reading import COLOURS, LUMA, conv_shape, count, shuffle_factor

_EXPAND, _SQUEEZE = ".conv_expand.", ".conv_squeeze."
_PORT_ANCHOR = "anchor.net."


@dataclass(frozen=True, kw_only=True)
class SESRConfig(NetworkConfig):
    """Shape and form of an SESR.

    Attributes:
        scale: 2, 3 or 4.
        blocks: 3x3 blocks, m of the paper.
        width: Features, f.
        colours: 1: luma; the convolutions see the picture minus 0.5, and the result is clipped to 0..1. 3: RGB; the
            first convolution has an activation too, and nothing is taken off or clipped.
        prelu: PReLU with a slope per channel behind the blocks, or ReLU, which the official code trains for integers.
        expanded: Features inside a linear block of the training form, p.
        collapsed: Whether this is the plain form.
    """

    blocks: int = 5
    width: int = 16
    colours: int = LUMA
    prelu: bool = True
    expanded: int = 256
    collapsed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colours not in (LUMA, COLOURS):
            raise UserError(
                f"{type(self).__name__}: colours is {self.colours}; allowed: {LUMA} (luma), {COLOURS} (RGB)"
            )


class LinearBlock(Collapsible):
    """A k x k convolution to `expanded` features and a 1x1 convolution, plus the input where `short`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, expanded: int, *, short: bool) -> None:
        super().__init__()
        self.conv_expand = nn.Conv2d(inputs, expanded, kernel, padding=kernel // 2, bias=False)
        self.conv_squeeze = nn.Conv2d(expanded, outputs, 1)
        self.short = short

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        return self.convolve(x)

    def collapse(self) -> tuple[Tensor, Tensor]:
        """Both kernels as one, and the identity in its centre; section 3.2 of the paper."""
        assert self.conv_squeeze.bias is not None
        weight = torch.einsum("oe,eikl->oikl", self.conv_squeeze.weight[..., 0, 0], self.conv_expand.weight)
        if self.short:
            weight = weight + nn.init.dirac_(torch.empty_like(weight))
        return weight, self.conv_squeeze.bias


class SESR(SRNetwork[SESRConfig]):
    """SESR of any depth and width, in training form or collapsed."""

    name = "sesr"
    config_type = SESRConfig

    def __init__(self, config: SESRConfig) -> None:
        super().__init__(config, channels=config.colours)
        width, colours = config.width, config.colours
        self.shift = ChannelAffine([1.0], [-0.5])
        self.conv_first = _convolution(config, colours, width, 5)
        self.activation = _activation(config) if colours == COLOURS else None
        self.residual_block = nn.ModuleList(
            _convolution(config, width, width, 3, short=True) for _ in range(config.blocks)
        )
        self.activations = nn.ModuleList(_activation(config) for _ in range(config.blocks))
        self.conv_last = _convolution(config, width, colours * config.scale**2, 5)
        self.anchor = Anchor(config.scale**2)
        self.shuffle = nn.PixelShuffle(config.scale)
        self.clip = nn.Hardtanh(0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, colours, H, W] in 0..1 to [N, colours, scale*H, scale*W]; luma is clipped to 0..1."""
        if self.activation is None:
            features = first = self.conv_first(self.shift(x))
        else:
            features = first = self.activation(self.conv_first(x))
        for block, activation in zip(self.residual_block, self.activations, strict=True):
            features = activation(block(features))
        enlarged = self.shuffle(self.conv_last(features + first) + self.anchor(x))
        return self.clip(enlarged) if self.activation is None else enlarged

    def collapsed(self) -> SRNetwork[SESRConfig]:
        """The plain form."""
        if self.config.collapsed:
            return self
        return collapse(self, replace(self.config, collapsed=True, expanded=SESRConfig.expanded))

    @classmethod
    def entries(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries without the port's anchor, a constant; its collapsed convolutions are called `conv_expand`."""
        kept = {key: tensor for key, tensor in state.items() if not key.startswith(_PORT_ANCHOR)}
        if any(_SQUEEZE in key for key in kept):
            return kept
        return {key.replace(_EXPAND, "."): tensor for key, tensor in kept.items()}

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> SESRConfig | None:
        collapsed = not any(_SQUEEZE in key for key in state)
        entries, expand = cls.entries(state), "" if collapsed else ".conv_expand"
        squeeze = "" if collapsed else ".conv_squeeze"
        first, last = f"conv_first{expand}.weight", f"conv_last{squeeze}.weight"
        if not {first, last, f"residual_block.0{expand}.weight"} <= entries.keys():
            return None
        _check_anchor(state)
        inside, colours = conv_shape(entries, first)
        return SESRConfig(
            scale=shuffle_factor(last, conv_shape(entries, last)[0], colours),
            blocks=count(entries, f"residual_block.#{expand}.weight"),
            width=conv_shape(entries, f"conv_first{squeeze}.weight")[0],
            colours=colours,
            prelu=any(key.startswith("activation") for key in entries),
            expanded=SESRConfig.expanded if collapsed else inside,
            collapsed=collapsed,
        )


def _convolution(config: SESRConfig, inputs: int, outputs: int, kernel: int, *, short: bool = False) -> nn.Module:
    if config.collapsed:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return LinearBlock(inputs, outputs, kernel, config.expanded, short=short)


def _activation(config: SESRConfig) -> nn.Module:
    return nn.PReLU(config.width) if config.prelu else nn.ReLU()


def _check_anchor(state: Mapping[str, Tensor]) -> None:
    """Refuse an anchor of the port that is not nearest enlargement."""
    for key, tensor in state.items():
        if key.startswith(_PORT_ANCHOR):
            plain = tensor.detach().float()
            wanted = torch.zeros_like(plain) if plain.dim() == 1 else _repeated(plain)
            if wanted.numel() == 0 or not torch.equal(plain, wanted):
                raise UserError(f"'{key}' is not nearest-neighbour enlargement")


def _repeated(weight: Tensor) -> Tensor:
    """The anchor of the shape of `weight`, where there is one; else nothing."""
    if weight.dim() != 4 or weight.shape[1] == 0:
        return torch.empty(0)
    colours = weight.shape[1]
    return torch.eye(colours).repeat_interleave(max(len(weight) // colours, 1), dim=0)[..., None, None]
