"""Grids on which the engines' additions and products agree.

Engines round sums with different arithmetic: ONNX Runtime, and with it the integer reference, in float32, ties to
even; LiteRT's XNNPACK in fixed point with 21-bit multipliers, ties up. Their sums differ by about a millionth of a
step, so of all pairs of codes only a few, whose sum lies on a tie or beside it, are rounded apart; products likewise,
where one adds the zero point before it rounds and the other behind. A scale that is changed by some millionths moves
the ties: `agree` tries all pairs, `agreeing_grid` looks for such a scale, `settle` finds one for every addition and
product of a network. Sums on power-of-two grids lie on ties everywhere and cannot be brought to agree.

XNNPACK takes ratios of scales within bounds only (`TAKEN`). Layers that are silent on the calibration pictures, whose
grids span next to nothing, leave them; `widen` gives these wider grids.
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

from srquant.quantizers.grid import LARGEST_BIAS_CODE, Grid, expansion, largest_weight_code
from srquant.quantizers.layers import ActivationQuantizer, InputShift, QuantConv2d
from srquant.quantizers.structure import Structure, saturates

Codes = NDArray[np.uint8]
Grids = tuple[Grid, Grid, Grid]
"""Of the left and the right operand and of the result."""
Kind = Literal["add", "multiply"]

TAKEN: dict[Kind | Literal["convolution"], tuple[float, float]] = {
    "convolution": (0, 2.0**8),
    "add": (2.0**-10, 2.0**8),
    "multiply": (2.0**-16, 2.0**8),
}
"""The least ratio and the one that is too large, of what XNNPACK rounds to the grid of the result.

That is input scale times weight step, each operand's scale, or the product of both. Files with larger ones
cannot be loaded, or sums and products wrap around; smaller ones are left to other kernels.
"""
_WIDEN_ABOVE = 2.0**6
"""Grids are made at least that wide; what is finer than 1/64 of what it rounds holds no more."""
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
    """Whether XNNPACK takes the grids, and both kinds of arithmetic give the same code for all pairs of codes."""
    least, too_large = TAKEN[kind]
    if not all(least <= ratio < too_large for ratio in ratios(kind, grids)):
        return False
    codes = (np.arange(grid.maximum_code + 1, dtype=np.uint8) for grid in grids[:2])
    left, right = np.meshgrid(*codes, indexing="ij", sparse=True)
    reference, xnnpack = _ARITHMETIC[kind]
    return bool((reference(left, right, grids) == xnnpack(left, right, grids)).all())


def ratios(kind: Kind, grids: Grids) -> tuple[np.float32, ...]:
    """What `TAKEN` bounds: each operand's scale by the result's, or the product of both scales by it."""
    return _ratios(grids) if kind == "add" else (_product_ratio(grids),)


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


def widen(graph_module: fx.GraphModule, *, exact: bool) -> None:
    """Widen grids of a network until XNNPACK takes all ratios of scales, with room to spare; fixed ones stay.

    A result's grid becomes no finer than 1/64 of what it rounds, an operand's than 1/512 of the sum (2^-15 of the
    product, by the other operand).

    Args:
        graph_module: with quantisers that have their grids; convolutions take their steps and biases afterwards.
        exact: keep scales powers of two.
    """
    structure = Structure(graph_module)
    for _ in range(_ROUNDS):
        changed = [_widen(structure, node, exact=exact) for node in graph_module.graph.nodes]
        if not any(changed):
            return


def _widen(structure: Structure, node: fx.Node, *, exact: bool) -> bool:
    """Widen the grids around one operation; whether one was changed."""
    module, target = structure.module(node), _result(structure, node)
    if target is None:
        return False
    if isinstance(module, QuantConv2d):
        made = _largest_step(module)
        return made is not None and _raise(target, made / _WIDEN_ABOVE, exact=exact)
    if node.target not in _KINDS or len(node.all_input_nodes) != 2:
        return False
    operands = [_rounded(structure, operand)[0] for operand in node.all_input_nodes]
    one, two = (q if type(q) is ActivationQuantizer else None for q in operands)
    if one is None or two is None:
        return False
    scales = [quantizer.deployed_grid().scale for quantizer in (one, two)]
    if _KINDS[node.target] == "add":
        changed = _raise(target, max(scales) / _WIDEN_ABOVE, exact=exact)
        least = 2 * TAKEN["add"][0] * target.deployed_grid().scale
        return any([changed, *(_raise(operand, least, exact=exact) for operand in (one, two))])
    changed = _raise(target, scales[0] * scales[1] / _WIDEN_ABOVE, exact=exact)
    least = 2 * TAKEN["multiply"][0] * target.deployed_grid().scale
    return _raise(one, least / scales[1], exact=exact) or _raise(two, least / scales[0], exact=exact) or changed


def _result(structure: Structure, node: fx.Node) -> ActivationQuantizer | None:
    """The quantiser of what a node makes, behind a clip that its codes take over; None where there is none."""
    for reader in node.users:
        module = structure.module(reader)
        if saturates(module):
            return _result(structure, reader)
        if type(module) is ActivationQuantizer:
            return module
    return None


def _largest_step(convolution: QuantConv2d) -> float | None:
    """What the accumulator's step will be at most, but for powers of two; None where the input has no grid."""
    if type(convolution.source) is not ActivationQuantizer:
        return None
    spans = [float(part.detach().abs().max()) for part in (convolution.weight, convolution.bias) if part is not None]
    codes = largest_weight_code(convolution.bits) * expansion(convolution.bits)
    return max(convolution.input_scale * spans[0] / codes, spans[-1] / LARGEST_BIAS_CODE)


def _raise(quantizer: ActivationQuantizer, least: float, *, exact: bool) -> bool:
    """Make the scale of a grid that is not fixed no smaller than `least`; whether it was changed."""
    grid = quantizer.deployed_grid()
    if quantizer.fixed or grid.scale >= np.float32(least):
        return False
    scale = float(2.0 ** np.ceil(np.log2(least)) if exact else np.float32(least))
    quantizer.grid = replace(grid, scale=scale)
    return True


def settle(graph_module: fx.GraphModule) -> None:
    """Change the grids of a network's additions and products, in the order of execution, until they agree.

    The grid of the result changes, or of an operand where that is the picture's. What does not come to agree, such as
    a sum on power-of-two grids, stays as it is.

    Args:
        graph_module: with quantisers that have their grids; convolutions take their steps and biases afterwards.
    """
    structure = Structure(graph_module)
    nodes = [n for n in graph_module.graph.nodes if n.target in _KINDS and len(n.all_input_nodes) == 2]
    for _ in range(_ROUNDS):
        changed = [_settle(structure, node, _KINDS[node.target]) for node in nodes]
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


def _product_ratio(grids: Grids) -> np.float32:
    one, two, target = (np.float32(grid.scale) for grid in grids)
    return one * two / target


def _multipliers(ratios: tuple[np.float32, np.float32]) -> tuple[list[int], int]:
    """Fixed-point multipliers of both summands, the larger one of 21 bits, and the bits behind the point."""
    shift = _MULTIPLIER_BITS + 1 - int(np.frexp(max(ratios))[1])
    return [int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios], shift


def _product(left: Codes, right: Codes, grids: Grids) -> NDArray[Any]:
    """The product of centred codes, which is exact, by one scale; float32."""
    one, two, _ = grids
    values = left.astype(np.float32) - np.float32(one.zero_point)
    values = values * (right.astype(np.float32) - np.float32(two.zero_point))
    return values * _product_ratio(grids)


def _saturate(codes: NDArray[Any], grid: Grid) -> Codes:
    return np.clip(codes, 0, grid.maximum_code).astype(np.uint8)


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    """Fused a*b + c of float32: exact in float64, rounded once to float32."""
    return np.float32(np.asarray(a, np.float64) * np.float64(b) + np.asarray(c, np.float64))


_KINDS: dict[object, Kind] = {operator.add: "add", operator.mul: "multiply"}
_ARITHMETIC: dict[Kind, tuple[Callable[[Codes, Codes, Grids], Codes], Callable[[Codes, Codes, Grids], Codes]]] = {
    "add": (add_reference, add_xnnpack),
    "multiply": (multiply_reference, multiply_xnnpack),
}
"""The reference's arithmetic and XNNPACK's."""
