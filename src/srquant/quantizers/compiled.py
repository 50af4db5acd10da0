"""The arithmetic of `srquant.quantizers.kernels`, compiled by PyTorch: one kernel forward, one backward.

The grid and the sizes are arguments of the compiled code, so new bit widths and patch sizes do not compile again.
Values are seen as flat rows; a row has one grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from srquant.errors import UserError
from srquant.quantizers import kernels
from srquant.quantizers.kernels import AMPLITUDE, Ranges, Real


def rounded_with_marks(values: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor]:
    """As `kernels.rounded_with_marks`, for one grid or a grid for each sample; keeps the type of the values.

    Raises:
        UserError: there is no compiler that works.
    """
    values = kernels.dense(values.detach())
    table = _table(ranges, values.device)
    out, marks = _compiled(_round, values.device.type)(kernels.rows(values, len(table)), table)
    return out.as_strided(values.shape, values.stride()), marks.as_strided(values.shape, values.stride())


def gradients(grad: Tensor, marks: Tensor, ranges: Ranges, *, residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.gradients`."""
    grad = kernels.like(grad, marks)
    count = ranges.bounds.numel()
    kernel = _compiled(_gradients, grad.device.type)
    inside, above, below, between = kernel(kernels.rows(grad, count), kernels.rows(marks, count))
    sums = zip(ranges.parts, *(_numbers(part, ranges) for part in (above, below, between)), strict=True)
    ends = [kernels.bound_gradients(a, b, r if residual else None, part) for part, a, b, r in sums]
    if ranges.flat:
        lower, upper = torch.tensor(ends, device=grad.device).T.unbind()
    else:
        lower, upper = map(torch.as_tensor, ends[0])
    bounds = ranges.bounds
    return inside.as_strided(grad.shape, grad.stride()), lower.reshape(bounds), upper.reshape(bounds)


def squared_mismatch(values: Tensor, ranges: Ranges) -> Tensor:
    """The sum of squared rounding errors of values on one grid, float32 []."""
    values = kernels.dense(values.detach())
    return _compiled(_squared, values.device.type)(kernels.rows(values, 1), _table(ranges, values.device))


def mismatch_products(grad: Tensor, values: Tensor, ranges: Ranges) -> Tensor:
    """Of a gradient g and the rounding errors r: `<g, r>`, `<g, g>`, `<r, r>`, float32 [3]."""
    values = kernels.dense(values)
    grad, table = kernels.like(grad, values), _table(ranges, values.device)
    return _compiled(_products, grad.device.type)(kernels.rows(grad, 1), kernels.rows(values, 1), table)


def with_mismatch(grad: Tensor, values: Tensor, ranges: Ranges, factors: Tensor) -> Tensor:
    """A gradient g plus a factor times the rounding errors r, in the type of the gradient.

    Args:
        grad: g, float32 or bfloat16.
        values: of the shape of g.
        ranges: one grid.
        factors: float32 [3], where g*r is positive, zero and negative.
    """
    values = kernels.dense(values)
    grad, table = kernels.like(grad, values), _table(ranges, values.device)
    out = _compiled(_pulled, grad.device.type)(kernels.rows(grad, 1), kernels.rows(values, 1), table, factors)
    return out.as_strided(values.shape, values.stride())


def _numbers(sums: Tensor, ranges: Ranges) -> Iterable[Real]:
    """For each of the grids: its number, or its tensor."""
    return sums.tolist() if ranges.flat else [sums.reshape(ranges.bounds)]


def _table(ranges: Ranges, device: torch.device) -> Tensor:
    """A row for each grid: lower, upper, scale, zero point, levels."""
    lines = [(p.lower, p.upper, p.scale, p.zero_point) for p in ranges.parts]
    if ranges.flat:
        return torch.tensor([(*line, ranges.parts[0].levels) for line in lines], device=device)
    columns = [torch.as_tensor(column).flatten() for column in lines[0]]
    return torch.stack([*columns, torch.full_like(columns[0], ranges.parts[0].levels)], 1)


_FORMS = 128
"""How many forms of one kernel a process may compile: memory layouts, views, kinds of numbers. PyTorch's own limit, 8,
makes a process fail that trains one network after another."""
_OPTIONS = signature(torch.compile).parameters
"""Versions before the pinned one have no such limit for a single kernel."""


@cache
def _compiled(kernel: Callable[..., Any], device: str) -> Callable[..., Any]:
    if device == "cpu":
        _require_compiler()
    limit: dict[str, Any] = {"recompile_limit": _FORMS} if "recompile_limit" in _OPTIONS else {}
    return torch.compile(kernel, dynamic=True, fullgraph=True, **limit)


def _require_compiler() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about its own parts
            torch.compile(_probe, dynamic=True, fullgraph=True)(torch.zeros(64))
    except Exception as error:  # whatever the compiler, its absence or the system says
        raise UserError("kernel 'compiled' needs a C++ compiler that works here; use kernel 'eager'") from error


def _probe(values: Tensor) -> Tensor:
    return values * 2 + 1


def _round(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper, scale, zero_point, levels = table.split(1, 1)
    wide = values.float()
    exact = wide / scale
    codes = torch.minimum(torch.maximum(torch.round(exact), -zero_point), levels - zero_point)
    marks = torch.round((exact - codes) * (2 * AMPLITUDE))
    marks = torch.where(wide > upper, AMPLITUDE + 1, torch.where(wide < lower, -AMPLITUDE - 1, marks))
    return (codes * scale).to(values.dtype), marks.to(torch.int8)


def _errors(values: Tensor, table: Tensor) -> Tensor:
    _, _, scale, zero_point, levels = table.split(1, 1)
    wide = values.float()
    codes = torch.minimum(torch.maximum(torch.round(wide / scale), -zero_point), levels - zero_point)
    return wide - codes * scale


def _squared(values: Tensor, table: Tensor) -> Tensor:
    return _errors(values, table).square().sum()


def _products(grad: Tensor, values: Tensor, table: Tensor) -> Tensor:
    wide, errors = grad.float(), _errors(values, table)
    return torch.stack([(wide * errors).sum(), wide.square().sum(), errors.square().sum()])


def _pulled(grad: Tensor, values: Tensor, table: Tensor, factors: Tensor) -> Tensor:
    wide, errors = grad.float(), _errors(values, table)
    agreement = wide * errors
    factor = torch.where(agreement > 0, factors[0], torch.where(agreement < 0, factors[2], factors[1]))
    return (wide + factor * errors).to(grad.dtype)


def _gradients(grad: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the values, and its sums above, below and (times residual) between, of each row."""
    wide, sides = grad.float(), marks.float()
    above, below = sides > AMPLITUDE, sides < -AMPLITUDE
    inside = torch.where(above | below, 0.0, wide)
    return (
        inside.to(grad.dtype),
        torch.where(above, wide, 0.0).sum(1),
        torch.where(below, wide, 0.0).sum(1),
        (inside * sides).sum(1) / (2 * AMPLITUDE),
    )
