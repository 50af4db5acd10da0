"""Fake quantisation between trainable bounds, with the closed-form straight-through gradient.

The quantiser is that of DDTB (ECCV 2022) and of everything derived from it: `n = 2^bits - 1` steps between a
lower and an upper bound. Two grids:

- `official`, as the released DDTB code computes it, in its order of operations: `s = n/(u-l)`,
  `zp = round(s*l) + 2^(bits-1)`, `q = round(s*clip(x) - zp)`, `out = (q + zp)/s`. Nothing clamps `q`, so exactly
  symmetric bounds give 2^bits + 1 levels. It is there to reproduce results, not for speed.
- `integer`, what is deployed: the range is widened to hold zero, the zero point is an integer code and codes
  are clamped to `0..n`, exactly as `srquant.quantizers.grid.fake_quantize` does.

Two gradients for the bounds: `indicator` (PACT) counts clipped elements alone; `official` also differentiates
scale and zero point, which adds the rounding residual `r = (out - clip(x))/(u-l)`: `d out/du = 1[x>u] + r`,
`d out/dl = 1[x<l] - r`. An element that lies exactly on a bound is halfway clipped on the `official` grid, as
`torch.min` and `torch.max` see it, and within the range on the `integer` grid, where the lower bound of rectified
values is an ordinary value.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from srquant.errors import unknown
from srquant.quantizers import compiled, kernels
from srquant.quantizers.kernels import Ranges, integer_grid

__all__ = [
    "Gradient",
    "GridKind",
    "Kernel",
    "fake_quantize_between",
    "integer_grid",
    "pass_gradient",
    "round_straight_through",
]

GridKind = Literal["official", "integer"]
Gradient = Literal["official", "indicator"]
Kernel = Literal["eager", "compiled"]


def fake_quantize_between(
    values: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: int,
    *,
    grid: GridKind = "integer",
    gradient: Gradient = "official",
    kernel: Kernel = "eager",
) -> Tensor:
    """Round `values` to the grid of `bits` bits between two bounds; differentiable in all three.

    The arithmetic is float32, under autocast too; the result has the type of `values` (bfloat16 values are rounded
    once more when they are returned).

    Args:
        values: float32 or bfloat16, any shape and layout.
        lower: float32, of a shape that broadcasts to `values`: [1] per tensor, [1,C,1,1] per channel, [N,1,1,1]
            per sample.
        upper: like `lower`.
        bits: 2 to 8.
        grid: see the module.
        gradient: see the module. On the `integer` grid the residual is kept in steps of 1/252.
        kernel: `eager` needs no compiler; `compiled` is faster. Both keep one byte per element for the backward on
            the `integer` grid. What is not worth compiling (the `official` grid, bounds per channel) is computed
            eagerly.

    Raises:
        UserError: `compiled` without a working compiler, or an unknown name.
    """
    for kind, given, allowed in (
        ("grid", grid, GridKind),
        ("gradient", gradient, Gradient),
        ("kernel", kernel, Kernel),
    ):
        if given not in get_args(allowed):
            raise unknown(kind, given, get_args(allowed))
    if grid == "official":
        return _official(values.float(), lower, upper, bits, gradient).to(values.dtype)
    if lower.shape != upper.shape:
        lower, upper = torch.broadcast_tensors(lower, upper)
    ranges = kernels.integer_ranges(values, lower, upper, bits)
    if not torch.is_grad_enabled():
        return kernels.rounded(values.float(), ranges).to(values.dtype)
    if values.is_leaf and not (lower.requires_grad or upper.requires_grad):
        return _OfLeaf.apply(values, ranges)
    function = _Compiled if kernel == "compiled" and kernels.has_rows(values, lower) else _Eager
    return function.apply(values, lower, upper, ranges, gradient == "official")


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, lower: Tensor, upper: Tensor, ranges: Ranges, residual: bool) -> Tensor:  # noqa: ARG004
        ctx.ranges, ctx.bounds = ranges, any(ctx.needs_input_grad[1:3])
        ctx.residual = residual and ctx.bounds
        rounded, marks = kernels.rounded_with_marks(values.float(), ranges, residual=ctx.residual)
        ctx.save_for_backward(marks)
        return rounded.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (marks,) = ctx.saved_tensors
        inside, lower, upper = kernels.gradients(
            grads[0].float(), marks, ctx.ranges, bounds=ctx.bounds, residual=ctx.residual
        )
        return inside.to(grads[0].dtype), lower, upper, None, None


class _OfLeaf(torch.autograd.Function):
    """Of a parameter between fixed bounds: the parameter is there anyway, so nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranges: Ranges) -> Tensor:
        ctx.save_for_backward(values)
        ctx.ranges = ranges
        return kernels.rounded(values.float(), ranges).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return kernels.within(grads[0], ctx.saved_tensors[0], ctx.ranges), None


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, lower: Tensor, upper: Tensor, ranges: Ranges, residual: bool) -> Tensor:  # noqa: ARG004
        ctx.ranges, ctx.residual = ranges, residual
        rounded, marks = compiled.rounded_with_marks(values, ranges)
        ctx.save_for_backward(marks)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (marks,) = ctx.saved_tensors
        return *compiled.gradients(grads[0], marks, ctx.ranges, residual=ctx.residual), None, None


def _official(values: Tensor, lower: Tensor, upper: Tensor, bits: int, gradient: Gradient) -> Tensor:
    """By autograd alone, because the sums of the closed form differ from the released code's in the last digits."""
    clipped = torch.max(torch.min(values, upper), lower)
    if gradient == "indicator":
        with torch.no_grad():
            rounded = _official_grid(clipped, lower, upper, bits)
        return pass_gradient(clipped, rounded)
    return _official_grid(clipped, lower, upper, bits)


def _official_grid(clipped: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    scale = (2**bits - 1) / (upper - lower)
    zero_point = round_straight_through(scale * lower) + 2 ** (bits - 1)
    return (round_straight_through(scale * clipped - zero_point) + zero_point) / scale


class _PassGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004 - the signature of torch
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ARG004
        return grads[0], None


def pass_gradient(values: Tensor, rounded: Tensor) -> Tensor:
    """Exactly `rounded`, but the gradient goes to `values`, unchanged; both of one shape."""
    return _PassGradient.apply(values, rounded)


def round_straight_through(values: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    return pass_gradient(values, torch.round(values.detach()))
