"""Grids on which the engines' additions and products agree.

Engines round sums with different arithmetic: ONNX Runtime, and with it the integer reference, in float32, ties to
even; LiteRT's XNNPACK in fixed point with 21-bit multipliers, ties up. Their sums differ by about a millionth of a
step, so of all pairs of codes only a few, whose sum lies on a tie or beside it, are rounded apart; products likewise,
where one adds the zero point before it rounds and the other behind. A scale that is changed by some millionths moves
the ties: `agree` tries all pairs, `agreeing_grid` looks for such a scale, `settle` finds one for every addition and
product of a network. Sums on power-of-two grids lie on ties everywhere and cannot be brought to agree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import ActivationQuantizer, InputShift
from srquant.quantizers.structure import Structure

Codes = NDArray[np.uint8]
Grids = tuple[Grid, Grid, Grid]
"""Of the left and the right operand and of the result."""
Kind = Literal["add", "multiply"]

_MULTIPLIER_BITS = 20
_NUDGES = [sign * steps for steps in range(8, 1024, 8) for sign in (1, -1)]
"""By how many float32 neighbours a scale is moved: up to 0.01 % away."""
_ROUNDS = 4
"""A scale that moves may spoil another operation; after so many rounds what still differs stays."""


def add_reference(left: Codes, right: Codes, grids: Grids) -> Codes:
    """The codes of a sum as the integer reference defines them: float32 with fused multiply-add, ties to even.

    Args:
        left: codes of any shape.
        right: codes of a shape that goes with it.
        grids: of `left`, `right` and the sum.
    """
    one, two, target = grids
    ratios = _ratios(grids)
    zero = _multiply_add(ratios[0], one.zero_point, ratios[1] * np.float32(two.zero_point))
    total = _multiply_add(right, ratios[1], np.float32(target.zero_point) - zero)
    total = _multiply_add(left, ratios[0], total)
    return _saturate(np.rint(total), target)


def add_xnnpack(left: Codes, right: Codes, grids: Grids) -> Codes:
    """The codes of a sum as XNNPACK computes them: fixed-point multipliers, ties up; as `add_reference`."""
    one, two, target = grids
    (times_left, times_right), shift = _multipliers(_ratios(grids))
    raised = (left.astype(np.int64) - one.zero_point) * times_left
    raised = raised + (right.astype(np.int64) - two.zero_point) * times_right
    return _saturate(((raised + (1 << (shift - 1))) >> shift) + target.zero_point, target)


def multiply_reference(left: Codes, right: Codes, grids: Grids) -> Codes:
    """The codes of a product as the integer reference defines them: the zero point is added before the rounding."""
    return _saturate(np.rint(_product(left, right, grids) + np.float32(grids[2].zero_point)), grids[2])


def multiply_xnnpack(left: Codes, right: Codes, grids: Grids) -> Codes:
    """The codes of a product as XNNPACK computes them: the zero point is added behind the rounding."""
    return _saturate(np.rint(_product(left, right, grids)) + grids[2].zero_point, grids[2])


def agree(kind: Kind, grids: Grids) -> bool:
    """Whether both kinds of arithmetic give the same code for all pairs of codes."""
    codes = (np.arange(grid.maximum_code + 1, dtype=np.uint8) for grid in grids[:2])
    left, right = np.meshgrid(*codes, indexing="ij", sparse=True)
    reference, xnnpack = _ARITHMETIC[kind]
    return bool((reference(left, right, grids) == xnnpack(left, right, grids)).all())


def agreeing_grid(kind: Kind, grids: Grids, which: int = 2) -> Grid | None:
    """One of the grids with its scale changed by 0.01 % at most, so that `agree` holds.

    The nearest scales are tried first.

    Args:
        kind: add or multiply.
        grids: of the operands and the result.
        which: the place of the grid that may change.

    Returns:
        The grid as it is if they agree already, None where no scale was found.
    """
    if agree(kind, grids):
        return grids[which]
    bits = np.float32(grids[which].scale).view(np.int32)
    for nudge in _NUDGES:
        grid = replace(grids[which], scale=float((bits + np.int32(nudge)).view(np.float32)))
        left, right, result = (grid if i == which else old for i, old in enumerate(grids))
        if agree(kind, (left, right, result)):
            return grid
    return None


def settle(graph_module: fx.GraphModule) -> None:
    """Change the grids of a network's additions and products, in the order of execution, until they agree.

    The grid of the result changes, or of an operand where that is the picture's. What does not come to agree, such as
    a sum on power-of-two grids, stays as it is.

    Args:
        graph_module: with quantisers that have their grids; convolutions take their steps and biases afterwards.
    """
    structure = Structure(graph_module)
    kinds: dict[object, Kind] = {operator.add: "add", operator.mul: "multiply"}
    nodes = [n for n in graph_module.graph.nodes if n.target in kinds and len(n.all_input_nodes) == 2]
    for _ in range(_ROUNDS):
        changed = [_settle(structure, node, kinds[node.target]) for node in nodes]
        if not any(changed):
            return


def _settle(structure: Structure, node: fx.Node, kind: Kind) -> bool:
    """Make one operation agree; whether a grid was changed for it."""
    told = [_rounded(structure, operand) for operand in node.all_input_nodes]
    told += [(structure.module(reader), 0) for reader in node.users]
    quantizers = [module for module, _ in told if type(module) is ActivationQuantizer]
    if len(told) != 3 or len(quantizers) != 3:
        return False
    grids = [quantizer.deployed_grid() for quantizer in quantizers]
    shifted = [replace(grid, zero_point=grid.zero_point + told[i][1]) for i, grid in enumerate(grids)]
    for which in (2, 0, 1):
        quantizer = quantizers[which]
        if quantizer.fixed or quantizers.count(quantizer) > 1:
            continue
        found = agreeing_grid(kind, (shifted[0], shifted[1], shifted[2]), which)
        if found is not None:
            quantizer.grid = replace(grids[which], scale=found.scale)
            return found.scale != grids[which].scale
    return False


def _rounded(structure: Structure, node: fx.Node) -> tuple[torch.nn.Module | None, int]:
    """The quantiser that an operand comes from, and what an input shift adds to its zero point."""
    shift = 0
    while structure.is_move(node) or node.target is torch.cat:
        module = structure.module(node)
        shift += module.code if isinstance(module, InputShift) else 0
        node = node.all_input_nodes[0]
    return structure.module(node), shift


def _ratios(grids: Grids) -> tuple[np.float32, np.float32]:
    one, two, target = (np.float32(grid.scale) for grid in grids)
    return one / target, two / target


def _multipliers(ratios: tuple[np.float32, np.float32]) -> tuple[list[int], int]:
    """Fixed-point multipliers of both summands, the larger one of 21 bits, and the bits behind the point."""
    shift = _MULTIPLIER_BITS + 1 - int(np.frexp(max(ratios))[1])
    return [int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios], shift


def _product(left: Codes, right: Codes, grids: Grids) -> NDArray[Any]:
    """The product of centred codes, which is exact, by one scale; float32."""
    one, two, target = grids
    values = left.astype(np.float32) - np.float32(one.zero_point)
    values = values * (right.astype(np.float32) - np.float32(two.zero_point))
    return values * (np.float32(one.scale) * np.float32(two.scale) / np.float32(target.scale))


def _saturate(codes: NDArray[Any], grid: Grid) -> Codes:
    return np.clip(codes, 0, grid.maximum_code).astype(np.uint8)


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    """Fused a*b + c of float32: exact in float64, rounded once to float32."""
    return np.float32(np.asarray(a, np.float64) * np.float64(b) + np.asarray(c, np.float64))


_ARITHMETIC: dict[Kind, tuple[Callable[[Codes, Codes, Grids], Codes], Callable[[Codes, Codes, Grids], Codes]]] = {
    "add": (add_reference, add_xnnpack),
    "multiply": (multiply_reference, multiply_xnnpack),
}
"""The reference's arithmetic and XNNPACK's."""
