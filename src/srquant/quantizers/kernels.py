"""The arithmetic of the `integer` grid for training: rounding, and the gradients from one byte per element.

Forward, with the deployed scale `s`, zero point `z` and range `[l, u]` (which holds zero): `t = x / s`,
`q = clamp(round(t), -z, n - z)`, `out = q * s`. What the backward needs of an element is one signed byte, its
*mark*: with an amplitude `a` of 126, `a + 1` above `u`, `-a - 1` below `l`, otherwise the rounding residual `t - q`
in steps of `1/2a`; `-a - 2` is what a ReLU before the quantiser cut off. Smaller amplitudes leave bits for the code.

With `A` and `B` the sums of the output's gradient over the elements above and below and
`R = sum(gradient * (q - t))` over the rest: `du = A + e`, `dl = B - e`, `e = R/n + A*c + B*d`, where `c` and `d` are
how far the ends of the grid miss the bounds, in units of the range. The `indicator` gradient has `e = 0`. Gradients
are those of the widened range and reach the bounds straight through the widening, so a bound on the wrong side of
zero is not stuck there.

In-place floating point arithmetic does it all, in pieces that fit a CPU's cache: PyTorch's comparisons, shifts and
masked writes of bytes cost ten times as much there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from srquant.quantizers.grid import SMALLEST_RANGE

AMPLITUDE = 126
"""Of marks that fill a byte of their own."""
_ENORMOUS = 1e30
_PIECE = 2**18

Real = float | Tensor
"""One number, or a float32 tensor that broadcasts to the values."""


@dataclass(frozen=True, eq=False)
class Range:
    """An integer grid and the range it was made from.

    Attributes:
        lower: at most 0.
        upper: at least 0.
        scale: the grid's step.
        zero_point: a whole number, 0..levels.
        levels: the largest code, 2^bits - 1.
    """

    lower: Real
    upper: Real
    scale: Real
    zero_point: Real
    levels: int

    @property
    def lowest(self) -> Real:
        """The smallest code, counted from the zero point."""
        return -self.zero_point

    @property
    def highest(self) -> Real:
        """The largest code, counted from the zero point."""
        return self.levels - self.zero_point


@dataclass(frozen=True, eq=False)
class Ranges:
    """The grids of a tensor.

    Attributes:
        parts: one for each sample, or one for all; of plain numbers if `flat`, otherwise one of tensors.
        flat: values are taken as dense rows, one for each part.
        bounds: the shape of the bounds.
    """

    parts: list[Range]
    flat: bool
    bounds: torch.Size


def integer_ranges(values: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Ranges:
    """The grids between bounds of one shape, which broadcasts to that of the values."""
    levels = 2**bits - 1
    if values.device.type == "cpu" and has_rows(values, lower):
        pairs = zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True)
        return Ranges([_plain_range(low, high, levels) for low, high in pairs], True, lower.shape)
    low, high = lower.detach().clamp(max=0), upper.detach().clamp(min=0)
    part = Range(low, high, *_grid(low.double(), high.double(), levels), levels)
    return Ranges([part], False, lower.shape)


def has_rows(values: Tensor, bounds: Tensor) -> bool:
    """Whether there is one pair of bounds, or one for each sample."""
    return bounds.numel() == 1 or (bounds.dim() == values.dim() and bounds.numel() == len(bounds) == len(values))


def integer_grid(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (whole numbers in float32) of the `integer` grid; shaped like the bounds."""
    low, high = lower.detach().double().clamp(max=0), upper.detach().double().clamp(min=0)
    return _grid(low, high, 2**bits - 1)


def _grid(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """In float64, as `srquant.quantizers.grid.grid_from_range` does."""
    scale = ((high - low).clamp(min=SMALLEST_RANGE) / levels).float()
    return scale, torch.round(-low / scale.double()).clamp(0, levels).float()


def _plain_range(low: float, high: float, levels: int) -> Range:
    if not (math.isfinite(low) and math.isfinite(high)):
        return Range(math.nan, math.nan, math.nan, math.nan, levels)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor(max(high - low, SMALLEST_RANGE) / levels).item()
    return Range(low, high, scale, float(min(max(round(-low / scale), 0), levels)), levels)


# --- forward ------------------------------------------------------------------------------------------------------


def rounded(values: Tensor, ranges: Ranges) -> Tensor:
    """Float32 values on their grids, in the layout of the values if that has no gaps."""
    values = dense(values) if ranges.flat else values
    out = torch.empty_like(values)
    for part, source, target in _pieces(ranges, values, out):
        _codes(source, part, target, target).mul_(part.scale)
    return out


def rounded_with_marks(values: Tensor, ranges: Ranges, *, residual: bool) -> tuple[Tensor, Tensor]:
    """Float32 values on their grids, and the marks (int8).

    Args:
        values: float32, any layout.
        ranges: their grids.
        residual: whether the marks hold the residual, or the side alone.
    """
    values = dense(values) if ranges.flat else values
    out, marks = torch.empty_like(values), torch.empty_like(values, dtype=torch.int8)
    scratch = _scratch(values, ranges, 2)
    for part, source, target, mark in _pieces(ranges, values, out, marks):
        exact, missing = (buffer[: len(source)] for buffer in scratch)
        _codes(source, part, exact, target)
        mark.copy_(_marks(source, part, exact, target, missing, AMPLITUDE if residual else 0, AMPLITUDE))
        target.mul_(part.scale)
    return out, marks


@dataclass(frozen=True)
class Form:
    """What is kept of an element for the backward.

    Attributes:
        bits: of the codes.
        residual: whether marks hold the residual, or the side alone.
        packed: code and mark share a byte, the code in the upper bits; at most 6 bits, 4 with the residual.
        rectified: a ReLU stands before the quantiser.
    """

    bits: int
    residual: bool
    packed: bool
    rectified: bool

    @property
    def amplitude(self) -> int:
        """Of the marks."""
        return 2 ** (7 - self.bits) - 2 if self.packed else AMPLITUDE

    @property
    def code_step(self) -> int:
        """What a code counts in a packed byte."""
        return 2 ** (8 - self.bits)


def encoded(values: Tensor, ranges: Ranges, form: Form, codes: Tensor) -> list[Tensor]:
    """What is kept of float32 values: marks (int8) and codes, or both packed in one uint8 tensor.

    Args:
        values: float32, `dense` if the ranges are flat.
        ranges: their grids.
        form: of what is kept.
        codes: uint8 or float32, filled with the codes.
    """
    kept = torch.empty_like(values, dtype=torch.uint8 if form.packed else torch.int8)
    scratch = _scratch(values, ranges, 4 if form.rectified else 3)
    zero_mark = -form.amplitude - 2
    for part, source, target, code in _pieces(ranges, values, kept, codes):
        exact, missing, centred, *positive = (buffer[: len(source)] for buffer in scratch)
        real = torch.clamp(source, min=0, out=positive[0]) if form.rectified else source
        _codes(real, part, exact, centred)
        marks = _marks(real, part, exact, centred, missing, form.amplitude if form.residual else 0, form.amplitude)
        if form.rectified:
            marks.sub_(zero_mark)
            torch.ops.aten.threshold_backward.grad_input(marks, source, 0, grad_input=marks)
            marks.add_(zero_mark)
        code.copy_(centred.add_(part.zero_point))
        target.copy_(marks.sub_(zero_mark).add_(centred, alpha=form.code_step) if form.packed else marks)
    return [kept] if form.packed else [kept, codes]


def unpacked(packed: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Marks (int8) and codes (float32) of a packed tensor; by roundings, as shifts of bytes are slow."""
    step, half = form.code_step, 2.0 ** (7 - form.bits) - 0.5
    both = packed.float()
    codes = both.sub(half).mul_(1 / step).round_()
    return both.sub_(codes, alpha=step).sub_(form.amplitude + 2).to(torch.int8), codes


def on_grid_(codes: Tensor, ranges: Ranges) -> Tensor:
    """Codes (float32) turned into values in place."""
    for part, target in _pieces(ranges, codes):
        target.sub_(part.zero_point).mul_(part.scale)
    return codes


def _marks(
    values: Tensor, part: Range, exact: Tensor, codes: Tensor, missing: Tensor, amplitude: int, largest: int
) -> Tensor:
    """The marks as float32, in `exact`, which holds values over scale; `missing` is overwritten.

    Args:
        values: float32.
        part: their grid.
        exact: values over scale.
        codes: counted from the zero point.
        missing: scratch.
        amplitude: of the residual; 0 leaves it out.
        largest: the amplitude of the marks.
    """
    if amplitude:
        exact.sub_(codes).mul_(2 * amplitude)
    else:
        exact.zero_()
    _clip(values, part.lower, part.upper, missing).sub_(values)
    return exact.sub_(missing, alpha=_ENORMOUS).clamp_(-largest - 1, largest + 1).round_()


def _scratch(values: Tensor, ranges: Ranges, count: int) -> list[Tensor]:
    """Tensors as large as the largest piece of the values."""
    if not ranges.flat:
        return [torch.empty_like(values) for _ in range(count)]
    return [torch.empty(min(values.numel() // len(ranges.parts), _PIECE)) for _ in range(count)]


def _codes(values: Tensor, part: Range, exact: Tensor, out: Tensor) -> Tensor:
    """Codes counted from the zero point; `exact` becomes values over scale."""
    torch.div(values, part.scale, out=exact)
    return _clip(torch.round(exact, out=out), part.lowest, part.highest, out)


def _clip(values: Tensor, low: Real, high: Real, out: Tensor) -> Tensor:
    if isinstance(low, Tensor):
        torch.maximum(values, low, out=out)
        return torch.minimum(out, torch.as_tensor(high), out=out)
    return torch.clamp(values, low, high, out=out)  # pyright: ignore[reportCallIssue, reportArgumentType]


# --- backward -----------------------------------------------------------------------------------------------------


def gradients(
    grad: Tensor,
    marks: Tensor,
    ranges: Ranges,
    *,
    bounds: bool,
    residual: bool,
    rectified: bool = False,
    amplitude: int = AMPLITUDE,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of values, lower and upper, from the gradient of the output.

    Args:
        grad: float32, any layout.
        marks: as `rounded_with_marks` gave them.
        ranges: of the forward pass.
        bounds: whether the bounds need a gradient.
        residual: the `official` gradient.
        rectified: whether a ReLU stands before the quantiser.
        amplitude: of the marks.
    """
    grad = like(grad, marks)
    inside = torch.empty_like(grad)
    ends: dict[int, tuple[Real, Real]] = {}
    for part, g, mark, target in _pieces(ranges, grad, marks, inside):
        sides = mark.float()
        if rectified:
            g = torch.ops.aten.threshold_backward(g, sides, -1.5 - amplitude)
        torch.ops.aten.hardtanh_backward.grad_input(g, sides, -0.5 - amplitude, 0.5 + amplitude, grad_input=target)
        if bounds:
            shape = None if ranges.flat else ranges.bounds
            lower, upper = bound_gradients(*_sums(g - target, target, sides, shape, amplitude, residual), part)
            before = ends.get(id(part), (0.0, 0.0))
            ends[id(part)] = before[0] + lower, before[1] + upper
    if not bounds:
        return inside, None, None
    if not ranges.flat:
        lower, upper = ends[id(ranges.parts[0])]
        return inside, torch.as_tensor(lower), torch.as_tensor(upper)
    lower, upper = (torch.tensor([ends[id(part)][i] for part in ranges.parts]) for i in range(2))
    return inside, lower.reshape(ranges.bounds), upper.reshape(ranges.bounds)


def within(grad: Tensor, values: Tensor, ranges: Ranges) -> Tensor:
    """The gradient where the values lie within their range, zero elsewhere."""
    if not ranges.flat:
        (part,) = ranges.parts
        return grad * ((values >= part.lower) & (values <= part.upper))
    values = dense(values)
    grad = like(grad, values)
    out = torch.empty_like(grad)
    for part, g, source, target in _pieces(ranges, grad, values, out):
        ends = torch.tensor([part.lower, part.upper])
        ends = torch.nextafter(ends, torch.tensor([-math.inf, math.inf])).tolist()
        torch.ops.aten.hardtanh_backward.grad_input(g, source, *ends, grad_input=target)
    return out


def _sums(
    outside: Tensor, inside: Tensor, sides: Tensor, shape: torch.Size | None, amplitude: int, residual: bool
) -> tuple[Real, Real, Real | None]:
    """Of the gradient above, below, and times residual between; numbers, or tensors of a shape.

    The first two are exactly zero where nothing is clipped: Adam would make whole steps of mere noise.
    """
    above = torch.ops.aten.threshold_backward(outside, sides, 0)
    below = outside.sub_(above)
    if shape is None:
        between = torch.dot(inside, sides).item() / (2 * amplitude) if residual else None
        return above.sum().item(), below.sum().item(), between
    between = (inside * sides).sum_to_size(shape) / (2 * amplitude) if residual else None
    return above.sum_to_size(shape), below.sum_to_size(shape), between


def bound_gradients(above: Real, below: Real, rounding: Real | None, part: Range) -> tuple[Real, Real]:
    """Of lower and upper, from the sums above, below and between (times `t - q`; None: `indicator`)."""
    if rounding is None:
        return below, above
    width = part.scale * part.levels
    overshoot_above = (part.highest * part.scale - part.upper) / width
    overshoot_below = (part.lowest * part.scale - part.lower) / width
    residual = above * overshoot_above + below * overshoot_below - rounding / part.levels
    return below - residual, above + residual


# --- layout -------------------------------------------------------------------------------------------------------


def like(values: Tensor, model: Tensor) -> Tensor:
    """Values with the strides of a tensor without gaps, so that flat views of the two match."""
    if values.stride() == model.stride():
        return values
    return torch.empty_like(model, dtype=values.dtype).copy_(values)


def dense(values: Tensor) -> Tensor:
    """Values without gaps in memory, samples outermost."""
    channels_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return values if channels_last else values.contiguous()


def rows(values: Tensor, count: int) -> Tensor:
    """Values that are `dense`, as [count, elements]."""
    length = values.numel() // count
    return values.as_strided((count, length), (length, 1))


def _pieces(ranges: Ranges, *tensors: Tensor) -> Iterator[tuple]:
    """A grid and the parts of all tensors that lie on it."""
    if not ranges.flat:
        yield ranges.parts[0], *tensors
        return
    length = tensors[0].numel() // len(ranges.parts)
    for row, part in enumerate(ranges.parts):
        for start in range(0, length, _PIECE):
            place = (min(_PIECE, length - start),), (1,), row * length + start
            yield part, *(t.as_strided(place[0], place[1], place[2] + t.storage_offset()) for t in tensors)
