"""The slow, obvious executor that defines what every operation computes.

Accumulators are exact. Where a real number enters, the arithmetic is float32 with rounding to the nearest, ties
to even, in the order in which ONNX Runtime's x86-64 kernels (AVX2 with fused multiply-add) take the steps, so
that both agree on every code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srquant.integer import gated, program
from srquant.integer import graph as ops
from srquant.integer.graph import IntegerGraph, Operation
from srquant.quantizers.agreement import Grids, add_reference, multiply_reference
from srquant.quantizers.grid import Grid

Codes = NDArray[np.uint8]
Values = NDArray[np.float32]
_Inputs = dict[str, Codes]


def run(graph: IntegerGraph, picture: Codes) -> Codes:
    """Enlarge one picture.

    Args:
        graph: what to compute.
        picture: uint8 [H, W, C].

    Returns:
        uint8 [scale*H, scale*W, C].
    """
    values: dict[str, Codes] = {graph.input: picture.transpose(2, 0, 1)}
    last_use = {name: i for i, operation in enumerate(graph.operations) for name in ops.sources(operation)}
    for i, operation in enumerate(graph.operations):
        values[operation.output] = compute(graph, operation, values)
        for name in set(ops.sources(operation)):
            if last_use[name] == i and name != graph.output:
                del values[name]
    return np.ascontiguousarray(values[graph.output].transpose(1, 2, 0))


def compute(graph: IntegerGraph, operation: Operation, values: _Inputs) -> Codes:
    """One operation: the codes [C, H, W] of its output from those of its inputs."""
    if graph.is_gated(operation):
        return gated.compute(graph, operation, values, accumulate)
    return _KERNELS[type(operation)](graph, operation, values)


def _convolution(graph: IntegerGraph, op: ops.Convolution, values: _Inputs) -> Codes:
    source, target = graph.tensors[op.input].grid, graph.tensors[op.output].grid
    accumulator = accumulate(op, values[op.input], source.zero_point)
    multiplier = np.float32(source.scale) * op.weight_scale / np.float32(target.scale)
    scaled = accumulator.astype(np.float32) * multiplier[:, None, None]
    return _saturate(np.rint(scaled) + target.zero_point, target, target.zero_point if op.relu else 0)


def accumulate(op: ops.Convolution, codes: Codes, zero_point: int) -> NDArray[np.float64]:
    """The exact sums [O, H', W'] of (code - zero point) * weight, plus bias; whole numbers in float64."""
    height, width = codes.shape[1:]
    kernel_height, kernel_width = op.weight.shape[2:]
    centred = codes.astype(np.float64) - zero_point
    padded = np.pad(centred, ((0, 0), (op.padding, op.padding), (op.padding, op.padding)))
    rows, columns = height + 2 * op.padding - kernel_height + 1, width + 2 * op.padding - kernel_width + 1
    sums = np.tile(op.bias.astype(np.float64)[:, None, None], (1, rows, columns))
    outputs, inputs = op.weight.shape[0] // op.groups, op.weight.shape[1]
    weight = op.weight.astype(np.float64)
    for group in range(op.groups):
        to, part = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
        for i in range(kernel_height):
            for j in range(kernel_width):
                window = padded[part, i : i + rows, j : j + columns]
                sums[to] += np.tensordot(weight[to, :, i, j], window, axes=1)
    return sums


def _add(graph: IntegerGraph, op: ops.Add, values: _Inputs) -> Codes:
    return add_reference(values[op.left], values[op.right], _grids(graph, op))


def _multiply(graph: IntegerGraph, op: ops.Multiply, values: _Inputs) -> Codes:
    return multiply_reference(values[op.left], values[op.right], _grids(graph, op))


def _grids(graph: IntegerGraph, op: ops.Add | ops.Multiply) -> Grids:
    left, right, target = (graph.tensors[name].grid for name in (op.left, op.right, op.output))
    return left, right, target


def _leaky_relu(graph: IntegerGraph, op: ops.LeakyRelu, values: _Inputs) -> Codes:
    real = dequantize(values[op.input], graph.tensors[op.input].grid)
    return quantize(np.where(real < 0, real * op.slope[:, None, None], real), graph.tensors[op.output].grid)


def _requantize(graph: IntegerGraph, op: ops.Requantize, values: _Inputs) -> Codes:
    return quantize(dequantize(values[op.input], graph.tensors[op.input].grid), graph.tensors[op.output].grid)


def _pad(graph: IntegerGraph, op: ops.Pad, values: _Inputs) -> Codes:  # noqa: ARG001
    sides = (op.amount, op.amount)
    return np.pad(values[op.input], ((0, 0), sides, sides), constant_values=op.code)


def _concatenate(graph: IntegerGraph, op: ops.Concatenate, values: _Inputs) -> Codes:  # noqa: ARG001
    return np.concatenate([values[name] for name in op.inputs])


def _pixel_shuffle(graph: IntegerGraph, op: ops.PixelShuffle, values: _Inputs) -> Codes:  # noqa: ARG001
    codes, factor = values[op.input], op.factor
    channels, height, width = codes.shape[0] // factor**2, *codes.shape[1:]
    if op.blocks_first:
        blocks = codes.reshape(factor, factor, channels, height, width).transpose(2, 3, 0, 4, 1)
    else:
        blocks = codes.reshape(channels, factor, factor, height, width).transpose(0, 3, 1, 4, 2)
    return blocks.reshape(channels, height * factor, width * factor)


def _repeat_channels(graph: IntegerGraph, op: ops.RepeatChannels, values: _Inputs) -> Codes:  # noqa: ARG001
    return np.repeat(values[op.input], op.times, axis=0)


def _slice_channels(graph: IntegerGraph, op: ops.SliceChannels, values: _Inputs) -> Codes:  # noqa: ARG001
    return values[op.input][op.start : op.stop]


def _lookup(graph: IntegerGraph, op: ops.Lookup, values: _Inputs) -> Codes:  # noqa: ARG001
    return op.table[values[op.input]]


def _clip(graph: IntegerGraph, op: ops.Clip, values: _Inputs) -> Codes:  # noqa: ARG001
    return values[op.input].clip(op.lowest, op.highest)


def _channel_clip(graph: IntegerGraph, op: ops.ChannelClip, values: _Inputs) -> Codes:  # noqa: ARG001
    raised = np.maximum(values[op.input], op.lowest[:, None, None])
    return np.minimum(raised, op.highest[:, None, None])


def _float_program(graph: IntegerGraph, op: ops.FloatProgram, values: _Inputs) -> Codes:
    real = dequantize(values[op.input], graph.tensors[op.input].grid)
    return quantize(program.run(op.steps, real), graph.tensors[op.output].grid)


_KERNELS: dict[type[Operation], Callable[[IntegerGraph, Any, _Inputs], Codes]] = {
    ops.Convolution: _convolution,
    ops.Add: _add,
    ops.Multiply: _multiply,
    ops.LeakyRelu: _leaky_relu,
    ops.Requantize: _requantize,
    ops.Pad: _pad,
    ops.Concatenate: _concatenate,
    ops.PixelShuffle: _pixel_shuffle,
    ops.RepeatChannels: _repeat_channels,
    ops.SliceChannels: _slice_channels,
    ops.Lookup: _lookup,
    ops.Clip: _clip,
    ops.ChannelClip: _channel_clip,
    ops.FloatProgram: _float_program,
}


def dequantize(codes: Codes, grid: Grid) -> Values:
    """Codes of any shape -> real values, float32 (ONNX DequantizeLinear)."""
    return _centred(codes, grid) * np.float32(grid.scale)


def quantize(real: Values, grid: Grid) -> Codes:
    """Real values of any shape -> codes, rounding ties to even before the zero point (ONNX QuantizeLinear)."""
    return _saturate(np.rint(real / np.float32(grid.scale)) + grid.zero_point, grid)


def _centred(codes: Codes, grid: Grid) -> Values:
    return codes.astype(np.float32) - np.float32(grid.zero_point)


def _saturate(codes: NDArray[Any], grid: Grid, lowest: int = 0) -> Codes:
    return np.clip(codes, lowest, grid.maximum_code).astype(np.uint8)
