"""Channels that are rounded to levels of their own: the selective distribution offsets of ODM, as they are deployed.

A tensor with shifts is held in 8-bit codes of one carrier grid, scale `s` and zero point `z`. Each channel may use 2^b
of the 256 codes, a *window* that starts where this channel's values lie, and may be multiplied by a factor of its own
before it is rounded; a tensor with factors alone keeps its b-bit grid:

    code = z + clip(round(A_c * x / s), lowest_c, lowest_c + 2^b - 1),   lowest_c = lowest + round(-t_c)

The shift `S_c = t_c * s` counts in whole steps, so zero stays a level of the carrier, the zero padding of a
convolution is the true x = 0, and nothing has to be undone behind it. But the codes of a shifted tensor need a highest
one per channel and, where windows start apart, a lowest one (`ChannelClip`: ONNX `Min` and `Max`); those of a plain
tensor have one highest code for all, and rounding ends at 0 by itself. With all low-bit tensors of an EDSR shifted that
is about a tenth of its time on ONNX Runtime (`benchmarks/offsets.py`); factors cost nothing.

The factor is undone by the convolutions that read the tensor: their weights are rounded after they were divided by `A`
along the input channels. Where a convolution makes the tensor, `A` goes into its steps and its bias, which have one
value per output channel anyway; where an 8-bit tensor is rounded to fewer bits, into that operation. Paper and choices:
`srquant.methods.offsets`; offsets of few bits: `srquant.quantizers.offset_codes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.quantizers.folding import sole_user
from srquant.quantizers.grid import Grid
from srquant.quantizers.kernels import SMALLEST_RANGE, integer_grid
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.offset_codes import drives_beyond, factor_levels, packed_offsets
from srquant.quantizers.straight_through import Gradient
from srquant.quantizers.structure import Structure

CARRIER_CODES = 256
MOST_WINDOW_BITS = 7
"""A window of more bits could not be moved within the carrier."""


def window_starts(shift: Tensor, lower: Tensor, upper: Tensor, bits: int, offset_bits: int | None) -> Tensor:
    """The lowest code of each channel, counted from zero: whole numbers in float32 [C].

    Args:
        shift: float32 [C], how many steps of the grid the values of a channel are moved by, to be rounded.
        lower: float32 [1], the trained bounds that all windows are as wide as.
        upper: of them.
        bits: of a window.
        offset_bits: of the signed number of steps; None keeps within -128..127, which the carrier always holds.
    """
    zero_point = integer_grid(lower, upper, bits)[1]
    steps = torch.round(-shift.detach())
    if offset_bits is not None:
        steps = steps.clamp(-(2 ** (offset_bits - 1)), 2 ** (offset_bits - 1) - 1)
    half = CARRIER_CODES // 2
    return (steps - zero_point).clamp(-half, half - 2**bits)


def round_to_windows(
    values: Tensor,
    lower: Tensor,
    upper: Tensor,
    shift: Tensor,
    bits: int,
    *,
    offset_bits: int | None = None,
    gradient: Gradient = "official",
) -> Tensor:
    """Round every channel to its window of whole steps; differentiable in values, bounds and shift.

    A window is `k` steps away from the bounds and moves with their step `s = (u - l)/n`. With `e = clip(x)` between
    `l + k*s` and `u + k*s` and `r = (out - e)/(u - l)`, straight-through in k as in the codes:

        d out/du = 1[x above] + r + k/n * 1[x outside],   d out/dl = 1[x below] - r - k/n * 1[x outside]
        d out/dt = -s where x is outside, else 0;   none that drives t further beyond the ends of k

    Args:
        values: float32 or bfloat16 [N,C,H,W].
        lower: float32 [1].
        upper: float32 [1].
        shift: float32 [C], t.
        bits: of a window, 2 to 7.
        offset_bits: as of `window_starts`.
        gradient: of the bounds; see `srquant.quantizers.straight_through`.
    """
    return _RoundToWindows.apply(values, lower, upper, shift, bits, offset_bits, gradient == "official")


class _RoundToWindows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        lower: Tensor,
        upper: Tensor,
        shift: Tensor,
        bits: int,
        offset_bits: int | None,
        residual: bool,
    ) -> Tensor:
        ctx.save_for_backward(values, lower, upper, shift)
        ctx.bits, ctx.offset_bits, ctx.residual = bits, offset_bits, residual
        scale, _ = integer_grid(lower, upper, bits)
        lowest = window_starts(shift, lower, upper, bits, offset_bits).view(1, -1, 1, 1)
        return _codes(values.float() / scale, lowest, bits).mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, lower, upper, shift = ctx.saved_tensors
        grad, values = grads[0].float(), values.float()
        scale, zero_point = integer_grid(lower, upper, ctx.bits)
        lowest = window_starts(shift, lower, upper, ctx.bits, ctx.offset_bits).view(1, -1, 1, 1)
        steps = lowest + zero_point
        low, high = lower.clamp(max=0) + steps * scale, upper.clamp(min=0) + steps * scale
        above, below = grad * (values > high), grad * (values < low)
        outside = above + below
        by_channel = outside.sum((0, 2, 3))
        carried = (by_channel * steps.flatten()).sum() / (2**ctx.bits - 1)
        by_lower, by_upper = below.sum() - carried, above.sum() + carried
        if ctx.residual:
            missing = _codes(values / scale, lowest, ctx.bits).mul_(scale) - values.clamp(low, high)
            rest = (grad * missing).sum() / (upper.clamp(min=0) - lower.clamp(max=0)).clamp(min=SMALLEST_RANGE)
            by_lower, by_upper = by_lower - rest, by_upper + rest
        held_back = drives_beyond(by_channel, -shift, steps.flatten())
        by_shift = (-scale * by_channel).masked_fill(held_back, 0)
        inside = (grad - outside).to(grads[0].dtype)
        return inside, by_lower.view_as(lower), by_upper.view_as(upper), by_shift, None, None, None


def _codes(steps: Tensor, lowest: Tensor, bits: int) -> Tensor:
    return torch.round(steps).clamp_(lowest, lowest + 2**bits - 1)


class ChannelQuantizer(ActivationQuantizer):
    """Rounds each channel to its window of a carrier grid, multiplied by its factor before.

    What it gives lies on the carrier grid: the factors are for the readers to undo.

    Args:
        bits: of a window.
        grid: the carrier, with the largest code 255; without windows the grid of all channels.
        lowest: uint8 [C], first code of each window; None where the grid alone limits the codes.
        factors: float32 [C], above 0; None where there are none, or whoever makes the tensor applies them.
        offset_bits: 2 to 8, that hold each window's start above the lowest one, and each factor; None where the
            windows lie anywhere and the factors are any.

    Raises:
        UserError: a window reaches beyond the grid, a factor is not finite and above 0, or the bits do not hold them.
    """

    def __init__(
        self,
        bits: int,
        grid: Grid,
        lowest: NDArray[np.uint8] | None,
        factors: NDArray[np.float32] | None,
        offset_bits: int | None = None,
    ) -> None:
        if lowest is not None and (lowest.ndim != 1 or int(lowest.max(initial=0)) + 2**bits - 1 > grid.maximum_code):
            raise UserError(f"windows of {bits} bit reach beyond the code {grid.maximum_code}")
        if factors is not None and not (factors.ndim == 1 and np.isfinite(factors).all() and (factors > 0).all()):
            raise UserError("the factors of a tensor's channels are not all finite and above 0")
        if offset_bits is not None:
            spread = 0 if lowest is None else int(np.ptp(lowest))
            on_levels = factors is None or bool(np.isin(factors, factor_levels(offset_bits)).all())
            if spread >= 2**offset_bits or not on_levels:
                raise UserError(
                    f"offsets of {offset_bits} bit do not hold the windows and factors of a tensor's channels"
                )
        super().__init__(bits, grid, low_bit=True)
        self.fixed = False
        self.lowest = lowest
        self.factors = factors
        self.offset_bits = offset_bits

    def limits(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The lowest and the highest code of each channel, uint8 [C] or [1]."""
        lowest = np.zeros(1, np.uint8) if self.lowest is None else self.lowest
        return lowest, lowest + np.uint8(2**self.bits - 1)

    def stored_bytes(self) -> int:
        """Bytes that an artefact needs for windows and factors."""
        return sum(part.nbytes for part in self.stored().values())

    def stored(self) -> dict[str, NDArray[Any]]:
        """Windows and factors as an artefact holds them; see `packed_offsets`."""
        return packed_offsets(self.lowest, self.factors, self.offset_bits)

    def forward(self, values: Tensor) -> Tensor:
        """Float32 [N,C,H,W] to values on the carrier grid."""
        grid = self.deployed_grid()
        if self.factors is not None:
            values = values * _wide(self.factors, values.device)
        lowest, highest = (_wide(end.astype(np.float32), values.device) for end in self.limits())
        codes = (torch.round(values / grid.scale) + grid.zero_point).clamp(lowest, highest)
        return (codes - grid.zero_point) * grid.scale

    def deployed(self) -> ActivationQuantizer:
        """A copy; the plain quantiser where neither windows nor factors are left."""
        if self.lowest is None and self.factors is None:
            return ActivationQuantizer(self.bits, self.deployed_grid(), low_bit=True)
        return ChannelQuantizer(self.bits, self.deployed_grid(), self.lowest, self.factors, self.offset_bits)

    def carrier(self) -> ActivationQuantizer:
        """The quantiser to the carrier grid alone."""
        return ActivationQuantizer(self.deployed_grid().bits, self.deployed_grid(), low_bit=True)

    def without_factors(self) -> ActivationQuantizer:
        """The quantiser of a tensor that is made with its factors applied."""
        return ChannelQuantizer(self.bits, self.deployed_grid(), self.lowest, None, self.offset_bits).deployed()


def channel_quantizer(
    lower: Tensor,
    upper: Tensor,
    bits: int,
    lowest: Tensor | None,
    factors: Tensor | None,
    offset_bits: int | None = None,
) -> ActivationQuantizer:
    """The deployed quantiser of trained bounds, windows and factors.

    The carrier's zero point is as low as the windows allow: kernels are fastest where it is 0.

    Args:
        lower: float32 [1].
        upper: float32 [1].
        bits: of a window.
        lowest: as `window_starts` gives it; None where the channels have no shifts.
        factors: float32 [C]; None where they have none.
        offset_bits: that windows and factors were trained with.
    """
    scale, base = integer_grid(lower, upper, bits)
    given = None if factors is None else factors.detach().float().cpu().numpy()
    whole = None if lowest is None else lowest.cpu().numpy().astype(np.int64)
    if whole is None or (whole == -int(base)).all():
        grid = Grid(float(scale), int(base), 2**bits - 1)
        return ChannelQuantizer(bits, grid, None, given, offset_bits).deployed()
    zero_point = max(0, -int(whole.min()))
    carrier = Grid(float(scale), zero_point, CARRIER_CODES - 1)
    return ChannelQuantizer(bits, carrier, (whole + zero_point).astype(np.uint8), given, offset_bits)


def _wide(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).view(1, -1, 1, 1)


def can_shift(structure: Structure, name: str) -> bool:
    """Whether the channels of a tensor may have windows of their own.

    It has to be rounded in one place, straight where it is computed, and be read by convolutions alone: not a
    concatenation or a part of one, nothing that a pixel shuffle or a slice moves, no clip but a ReLU before it.

    Args:
        structure: of a graph with quantisers.
        name: of the tensor.
    """
    calls = [node for node in structure.graph.nodes if node.target == f"quantizers.{name}"]
    if len(calls) != 1 or not calls[0].users:
        return False
    source = calls[0].all_input_nodes[0]
    if structure.is_move(source) or source.target is torch.cat or isinstance(structure.module(source), nn.Hardtanh):
        return False
    return all(isinstance(structure.module(reader), QuantConv2d) for reader in calls[0].users)


def can_scale(structure: Structure, name: str) -> bool:
    """Whether the channels may have factors: they may have windows, and whoever makes the tensor can apply them."""
    if not can_shift(structure, name):
        return False
    source = _made_from(structure, name)
    return isinstance(structure.module(source), ActivationQuantizer) or maker(structure, name) is not None


def maker(structure: Structure, name: str) -> str | None:
    """Name of the convolution that makes a tensor, up to batch normalisation and a ReLU; None where there is none."""
    node = _made_from(structure, name)
    if isinstance(structure.module(node), nn.ReLU):
        node = node.all_input_nodes[0]
    if isinstance(structure.module(node), nn.BatchNorm2d):
        node = node.all_input_nodes[0]
    made = isinstance(structure.module(node), nn.Conv2d) and sole_user(node) is not None
    return str(node.target) if made else None


def _made_from(structure: Structure, name: str) -> fx.Node:
    (call,) = (node for node in structure.graph.nodes if node.target == f"quantizers.{name}")
    return call.all_input_nodes[0]
