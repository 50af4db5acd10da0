"""Float programs: small computations on real numbers between two grids, as a list of steps.

Attentions look at pooled feature maps, whose values are few; they are computed in float32 and only their result is
rounded to a grid. `srquant.integer.program_lowering` makes a program of a traced layer, `run` defines what its steps
compute, and every engine translates the steps one by one: an attention made of these steps needs no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Function = Literal["relu", "sigmoid", "exp", "sqrt", "square"]

INPUT = "input"
"""The name of a program's first value; every further value has the name of the step that makes it."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step: reads float32 values [C, H, W] by name, makes the value `output`."""

    output: str


@dataclass(frozen=True, eq=False)
class Convolution(Step):
    """Convolution with zero padding.

    Attributes:
        weight: float32 [O, I/groups, k, k].
        bias: float32 [O].
        padding: rows/columns of zeros on every side.
    """

    input: str
    weight: Values
    bias: Values
    stride: int
    padding: int
    groups: int


@dataclass(frozen=True, eq=False)
class Unary(Step):
    """A function of every single number."""

    input: str
    function: Function


@dataclass(frozen=True, eq=False)
class Pool(Step):
    """Maximum or average of size x size windows without padding; rows that fill no window are left out."""

    input: str
    kind: Literal["max", "average"]
    size: int
    stride: int


@dataclass(frozen=True, eq=False)
class Mean(Step):
    """The mean over height and width, [C, 1, 1]."""

    input: str


@dataclass(frozen=True, eq=False)
class Grow(Step):
    """The last row and column repeated until there are `size` of each; larger values as they are."""

    input: str
    size: int


@dataclass(frozen=True, eq=False)
class Resize(Step):
    """Bilinear, corners not aligned, no smoothing, to the height and width of the value `like`."""

    input: str
    like: str


@dataclass(frozen=True, eq=False)
class Binary(Step):
    """Number by number, [C, 1, 1] against [C, H, W] too; `right` is a value's name or a number."""

    left: str
    right: str | float
    kind: Literal["add", "subtract", "multiply", "divide", "maximum"]


def run(steps: tuple[Step, ...], values: Values) -> Values:
    """The result of a program: float32 [C, H, W] to that of its last step.

    Sums are taken in float64; every step's result is rounded to float32.
    """
    held = {INPUT: values.astype(np.float32)}
    for step in steps:
        held[step.output] = _KERNELS[type(step)](step, held).astype(np.float32)
    return held[steps[-1].output]


_Held = dict[str, Values]


def _convolution(step: Convolution, held: _Held) -> NDArray[Any]:
    sides = (step.padding, step.padding)
    padded = np.pad(held[step.input].astype(np.float64), ((0, 0), sides, sides))
    windows = _windows(padded, step.weight.shape[2], step.stride)
    weight = step.weight.astype(np.float64)
    outputs, inputs = weight.shape[0] // step.groups, weight.shape[1]
    sums = [
        np.einsum("oikl,ihwkl->ohw", weight[g * outputs : (g + 1) * outputs], windows[g * inputs : (g + 1) * inputs])
        for g in range(step.groups)
    ]
    return np.concatenate(sums) + step.bias.astype(np.float64)[:, None, None]


def _windows(values: NDArray[Any], size: int, stride: int) -> NDArray[Any]:
    """All windows [C, H', W', size, size] of [C, H, W]."""
    return np.lib.stride_tricks.sliding_window_view(values, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def _unary(step: Unary, held: _Held) -> NDArray[Any]:
    return _FUNCTIONS[step.function](held[step.input].astype(np.float64))


def _pool(step: Pool, held: _Held) -> NDArray[Any]:
    windows = _windows(held[step.input], step.size, step.stride)
    return windows.max((3, 4)) if step.kind == "max" else windows.mean((3, 4), dtype=np.float64)


def _mean(step: Mean, held: _Held) -> NDArray[Any]:
    return held[step.input].mean((1, 2), dtype=np.float64, keepdims=True)


def _grow(step: Grow, held: _Held) -> NDArray[Any]:
    _, height, width = held[step.input].shape
    rest = (0, 0), (0, max(step.size - height, 0)), (0, max(step.size - width, 0))
    return np.pad(held[step.input], rest, mode="edge")


def _resize(step: Resize, held: _Held) -> NDArray[Any]:
    values = held[step.input].astype(np.float64)
    for axis in (1, 2):
        size, wanted = values.shape[axis], held[step.like].shape[axis]
        at = np.maximum((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0)
        low = np.minimum(at.astype(int), size - 1)
        share = (at - low).reshape(-1, *[1] * (2 - axis))
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, size - 1), axis) * share
    return values


def _binary(step: Binary, held: _Held) -> NDArray[Any]:
    right = held[step.right] if isinstance(step.right, str) else np.float32(step.right)
    return _OPERATORS[step.kind](held[step.left], right)


_FUNCTIONS: dict[Function, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-np.maximum(x, -700))),
    "exp": np.exp,
    "sqrt": np.sqrt,
    "square": np.square,
}

_OPERATORS: dict[str, Callable[[Any, Any], NDArray[Any]]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
}

_KERNELS: dict[type[Step], Callable[[Any, _Held], NDArray[Any]]] = {
    Convolution: _convolution,
    Unary: _unary,
    Pool: _pool,
    Mean: _mean,
    Grow: _grow,
    Resize: _resize,
    Binary: _binary,
}
