"""The reference of operations around a gate: their scale is known only when the picture is.

Sums of codes stay exact; they are multiplied by the picture's scale in float32. What follows a gate's tensor is
rounded to an ordinary grid again, or handed on as float32 to the next gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srquant.integer import graph as ops
from srquant.integer.graph import IntegerGraph, Operation

Value = NDArray[Any]
Values = dict[str, Value]
Accumulate = Callable[[ops.Convolution, Value, int], Value]


def compute(graph: IntegerGraph, operation: Operation, values: Values, accumulate: Accumulate) -> Value:
    """One operation that reads or makes a gated or real tensor.

    Args:
        graph: what the operation belongs to.
        operation: the operation.
        values: tensors by name; a gated rounding also adds its scale.
        accumulate: gives the exact sums [O, H, W] of a convolution.

    Returns:
        uint8 codes, or float32 values where the output is `real`.
    """
    if isinstance(operation, ops.GatedRound):
        return _gated_round(graph, operation, values)
    if isinstance(operation, ops.Convolution):
        result = _convolution(graph, operation, values, accumulate)
    elif isinstance(operation, ops.Add):
        result = real(graph, operation.left, values) + real(graph, operation.right, values)
    elif isinstance(operation, ops.Concatenate):
        result = np.concatenate([real(graph, name, values) for name in operation.inputs])
    elif isinstance(operation, ops.LeakyRelu):
        source = real(graph, operation.input, values)
        result = np.where(source < 0, source * operation.slope[:, None, None], source)
    else:
        assert isinstance(operation, ops.Requantize), operation
        result = real(graph, operation.input, values)
    target = graph.tensors[operation.output]
    if target.kind == "real":
        return result
    codes = np.rint(result / np.float32(target.grid.scale)) + target.grid.zero_point
    return np.clip(codes, 0, target.grid.maximum_code).astype(np.uint8)


def real(graph: IntegerGraph, name: str, values: Values) -> Value:
    """The real values [C, H, W] of a tensor of any kind, float32."""
    tensor, value = graph.tensors[name], values[name]
    if tensor.kind == "real":
        return value
    return (value.astype(np.float32) - np.float32(tensor.grid.zero_point)) * scale_of(tensor, values)


def scale_of(tensor: ops.Tensor, values: Values) -> np.float32:
    """The scale of a tensor of codes: its own, or this picture's."""
    if tensor.kind == "gated":
        return np.float32(values[ops.picture_scale(tensor.name)])
    return np.float32(tensor.grid.scale)


def _convolution(graph: IntegerGraph, op: ops.Convolution, values: Values, accumulate: Accumulate) -> Value:
    source = graph.tensors[op.input]
    sums = accumulate(op, values[op.input], source.grid.zero_point) - op.bias[:, None, None]
    bias = op.bias.astype(np.float32) * (np.float32(source.grid.scale) * op.weight_scale)
    result = sums.astype(np.float32) * (scale_of(source, values) * op.weight_scale)[:, None, None]
    result += bias[:, None, None]
    return np.maximum(result, 0) if op.relu else result


def _gated_round(graph: IntegerGraph, op: ops.GatedRound, values: Values) -> Value:
    source = real(graph, op.input, values)
    grid = op.picture_grid.of(source.astype(np.float64).mean((1, 2)))
    values[ops.picture_scale(op.output)] = np.asarray(grid.scale, np.float32)
    codes = np.clip(np.rint(source / np.float32(grid.scale)) + grid.zero_point, 0, grid.maximum_code)
    return (codes - grid.zero_point + ops.GATED_ZERO).astype(np.uint8)
