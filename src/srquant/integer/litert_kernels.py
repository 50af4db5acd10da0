"""What LiteRT's XNNPACK kernels compute, and the proof, operation by operation, that it is what the reference computes.

Convolutions are equal by their arithmetic: exact sums, one float32 multiplier, ties to even. Additions and products
are tried on all pairs of codes. Functions of one code are tried on all codes: scalings where these fit, else a table
is written. What only moves codes needs no proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from srquant.integer import graph as ops
from srquant.integer import reference
from srquant.integer.functions import is_robust
from srquant.integer.graph import IntegerGraph, Operation
from srquant.quantizers.agreement import TAKEN, Grids, Kind, agree, ratios
from srquant.quantizers.grid import Grid

_WEIGHTS = (64, 127, 96, 1)
"""Weight codes that a factor is tried with, its step being the factor by the code."""
_NUDGES = (0, 1, -1, 2, -2, 4, -4)
"""By how many float32 neighbours the step of a factor may be moved."""
_FUNCTIONS = {("sigmoid", Grid(1 / 256, 0, 255)): "LOGISTIC", ("tanh", Grid(1 / 128, 128, 255)): "TANH"}
"""The operators of functions, and the grids that they give their values on."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """A depthwise 1x1 convolution without a bias: one factor per channel.

    Attributes:
        weight: int8 [C].
        scale: float32 [C].
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]

    def run(self, codes: NDArray[Any], source: Grid, target: Grid, lowest: int | None = None) -> NDArray[np.int64]:
        """Codes [C, K] -> codes [C, K] of the target, saturating where int8 does: below 0 for less than 8 bits.

        Args:
            codes: of the source.
            source: grid of the codes.
            target: grid of the result.
            lowest: code that the result does not fall below, where it is a fused ReLU.
        """
        sums = (codes.astype(np.int64) - source.zero_point) * self.weight.astype(np.int64)[:, None]
        multiplier = self._multiplier(source, target)
        scaled = np.rint(sums.astype(np.float32) * multiplier[:, None]).astype(np.int64) + target.zero_point
        floor = target.maximum_code - 255 if lowest is None else lowest
        return np.clip(scaled, floor, target.maximum_code)

    def is_taken(self, source: Grid, target: Grid) -> bool:
        """Whether XNNPACK takes such a convolution."""
        return bool((self._multiplier(source, target) < TAKEN["convolution"][1]).all())

    def _multiplier(self, source: Grid, target: Grid) -> NDArray[np.float32]:
        return np.float32(source.scale) * self.scale / np.float32(target.scale)


@dataclass(frozen=True, eq=False)
class Rectifier:
    """How a LeakyRelu is made of scalings.

    Attributes:
        form: `maximum`: the larger of both scalings, for slopes up to 1; `sum`: the positive part scaled by
            `positive` and the negative part by `negative`, added up on one grid.
    """

    form: Literal["maximum", "sum"]
    positive: Scaling
    negative: Scaling

    def run(self, codes: NDArray[Any], source: Grid, target: Grid) -> NDArray[np.int64]:
        """Codes [C, K] -> codes [C, K] of the target."""
        if self.form == "maximum":
            parts = [scaling.run(codes, source, target) for scaling in (self.positive, self.negative)]
            result = np.maximum(*parts)
        else:
            low = np.minimum(codes.astype(np.int64), source.zero_point)
            result = self.positive.run(codes, source, target, target.zero_point)
            result = result + self.negative.run(low, source, target) - target.zero_point
        return np.clip(result, 0, target.maximum_code)


def requantizer(graph: IntegerGraph, op: ops.Requantize) -> Scaling | None:
    """The scaling that gives a Requantize's codes; None where none was found."""
    source, target = graph.tensors[op.input].grid, graph.tensors[op.output].grid
    codes, wanted = all_codes(source), table_of(graph, op)
    scaling = _scaling(np.ones(1, np.float32), codes, wanted, source, target)
    fits = (np.maximum(scaling.run(codes, source, target), 0) == wanted).all()
    return scaling if fits and scaling.is_taken(source, target) else None


def rectifier(graph: IntegerGraph, op: ops.LeakyRelu) -> Rectifier | None:
    """The scalings that give a LeakyRelu's codes, one factor where the slope is one; None where none were found."""
    source, target = graph.tensors[op.input].grid, graph.tensors[op.output].grid
    codes, wanted = all_codes(source).repeat(len(op.slope), axis=0), table_of(graph, op)
    above, below = codes[0] >= source.zero_point, codes[0] <= source.zero_point
    ones = np.ones(len(op.slope), np.float32)
    positive = _scaling(ones, codes[:, above], wanted[:, above], source, target)
    negative = _scaling(op.slope, codes[:, below], wanted[:, below], source, target)
    made = Rectifier("maximum" if op.slope.max() <= 1 else "sum", positive, negative)
    taken = positive.is_taken(source, target) and negative.is_taken(source, target)
    return made if taken and (made.run(codes, source, target) == wanted).all() else None


def table_of(graph: IntegerGraph, op: ops.LeakyRelu | ops.Lookup | ops.Requantize) -> NDArray[np.uint8]:
    """The reference's code for every code of the input, [C, K], with one row where all channels are treated alike."""
    rows = len(op.slope) if isinstance(op, ops.LeakyRelu) else 1
    codes = all_codes(graph.tensors[op.input].grid).repeat(rows, axis=0)
    return reference.compute(graph, op, {op.input: codes[:, None]})[:, 0]


def function_kernel(graph: IntegerGraph, op: ops.Lookup) -> str | None:
    """The LiteRT operator that gives a lookup's table whatever implements it, None where only the table itself does."""
    source, target = graph.tensors[op.input].grid, graph.tensors[op.output].grid
    kind = _FUNCTIONS.get((op.function, target))
    return kind if kind and is_robust(op.table, op.function, source, target) else None


def unequal(graph: IntegerGraph) -> list[str]:
    """The operations of a prepared graph that are not proven equal to the reference: "tensor (kind)" each.

    Args:
        graph: from `srquant.integer.litert_rewrites.prepare`.
    """
    return [f"{o.output} ({type(o).__name__})" for o in graph.operations if not is_equal(graph, o)]


def is_equal(graph: IntegerGraph, op: Operation) -> bool:
    """Whether an operation, as it is written for LiteRT, gives the reference's codes for all codes."""
    if isinstance(op, ops.FLOAT_OPERATIONS):
        return False
    if isinstance(op, ops.Add | ops.Multiply):
        return agree(*_kind_and_grids(graph, op))
    return refusal(graph, op) is None


def refusal(graph: IntegerGraph, op: Operation) -> str | None:
    """Why XNNPACK does not compute an operation, None where it does or another kernel gives near codes."""
    if isinstance(op, ops.Convolution):
        source, target = (np.float32(graph.tensors[name].grid.scale) for name in (op.input, op.output))
        largest, bound = (source * op.weight_scale / target).max(), TAKEN["convolution"][1]
    elif isinstance(op, ops.Add | ops.Multiply):
        kind, grids = _kind_and_grids(graph, op)
        largest, bound = max(ratios(kind, grids)), TAKEN[kind][1]
    else:
        return None
    if largest < bound:
        return None
    return (
        f"the scale of '{op.output}' is {largest:.4g} times finer than what it rounds ({type(op).__name__}), XNNPACK "
        f"takes less than {bound:.0f}: it was next to nothing on the pictures that the ranges come from"
    )


def _kind_and_grids(graph: IntegerGraph, op: ops.Add | ops.Multiply) -> tuple[Kind, Grids]:
    one, two, target = (graph.tensors[name].grid for name in (op.left, op.right, op.output))
    return "add" if isinstance(op, ops.Add) else "multiply", (one, two, target)


def all_codes(grid: Grid) -> NDArray[np.uint8]:
    """Every code of a grid, [1, K]."""
    return np.arange(grid.maximum_code + 1, dtype=np.uint8)[None]


def _scaling(
    factors: NDArray[np.float32], codes: NDArray[np.uint8], wanted: NDArray[Any], source: Grid, target: Grid
) -> Scaling:
    """Weights and steps whose products are the factors and give the wanted codes; the first ones where none do."""
    weights, scales = np.zeros(len(factors), np.int8), np.ones(len(factors), np.float32)
    for channel, factor in enumerate(factors):
        if factor == 0:
            continue
        for i, (weight, scale) in enumerate(_candidates(float(factor))):
            one = Scaling(np.array([weight], np.int8), np.array([scale], np.float32))
            found = np.maximum(one.run(codes[channel : channel + 1], source, target), 0)
            fits = bool((found == wanted[channel]).all())
            if fits or i == 0:
                weights[channel], scales[channel] = weight, scale
            if fits:
                break
    return Scaling(weights, scales)


def _candidates(factor: float) -> list[tuple[int, np.float32]]:
    found = []
    for nudge in _NUDGES:
        for weight in _WEIGHTS:
            scale = np.float32(abs(factor) / weight)
            moved = (scale.view(np.int32) + np.int32(nudge)).view(np.float32)
            found.append((weight if factor > 0 else -weight, moved))
    return found
