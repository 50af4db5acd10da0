"""Integer graphs on PyTorch alone, by oneDNN's int8 convolutions where the processor has them.

`torch.ops.onednn.qconv_*` is a private interface, so it is tried once on a small convolution; where it is missing
or wrong, convolutions run in float on the same codes, which is exact but slow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from srquant.engines.base import Pixels
from srquant.engines.program_torch import run_program
from srquant.integer import gated, reference
from srquant.integer import graph as ops
from srquant.integer.graph import IntegerGraph, Operation
from srquant.integer.rewrites import optimize
from srquant.quantizers.grid import Grid

_Values = dict[str, Tensor]
_ON_REAL_NUMBERS = (ops.LeakyRelu, ops.Multiply, ops.FloatProgram)
_LARGEST_EXACT = 2**24
"""Whole numbers up to here are exact in float32."""


class IntegerTorchEngine:
    """An integer graph on uint8 tensors [1, C, H, W], channels last."""

    name = "torch"
    shape: tuple[int, int] | None = None

    def __init__(self, graph: IntegerGraph) -> None:
        self.info = graph.info
        self.halo = graph.halo
        self._graph = optimize(graph)
        self._last_use = {
            name: i for i, operation in enumerate(self._graph.operations) for name in ops.sources(operation)
        }
        self._convolutions = {
            operation.output: _prepare(self._graph, operation)
            for operation in self._graph.operations
            if isinstance(operation, ops.Convolution) and not self._graph.is_gated(operation)
        }

        self._tables = {
            o.output: table for o in self._graph.operations if (table := _table(self._graph, o)) is not None
        }

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C]."""
        with torch.inference_mode():
            codes = torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)[None]
            values: _Values = {self._graph.input: codes}
            for i, operation in enumerate(self._graph.operations):
                values[operation.output] = self._compute(operation, values)
                for name in set(ops.sources(operation)):
                    if self._last_use[name] == i:
                        del values[name]
            return np.ascontiguousarray(values[self._graph.output][0].permute(1, 2, 0).numpy())

    def left_in_float(self) -> list[str]:
        """What is computed on real numbers between codes, and all convolutions where oneDNN has no int8."""
        real = [o.output for o in self._graph.operations if isinstance(o, _ON_REAL_NUMBERS)]
        real = [name for name in real if name not in self._tables] + self._graph.gates()
        return real + ([] if has_onednn_int8() else list(self._convolutions))

    def _compute(self, operation: Operation, values: _Values) -> Tensor:
        if self._graph.is_gated(operation):
            return self._compute_gated(operation, values)
        if operation.output in self._tables:
            return _looked_up(self._tables[operation.output], values[ops.sources(operation)[0]])
        if isinstance(operation, ops.Convolution):
            codes = values[operation.input].contiguous(memory_format=torch.channels_last)
            return self._convolutions[operation.output](codes)
        return _KERNELS[type(operation)](self._graph, operation, values)

    def _compute_gated(self, operation: Operation, values: _Values) -> Tensor:
        """By the reference's own arithmetic, the sums by PyTorch."""
        names = {*ops.sources(operation), *map(ops.picture_scale, ops.sources(operation))}
        arrays = {name: values[name].squeeze(0).numpy() for name in names if name in values}
        result = gated.compute(self._graph, operation, arrays, _sums)
        scale = ops.picture_scale(operation.output)
        if scale in arrays:
            values[scale] = torch.from_numpy(arrays[scale])[None]
        return torch.from_numpy(result)[None]


def _sums(op: ops.Convolution, codes: NDArray[np.uint8], zero_point: int) -> NDArray[Any]:
    """The exact sums [O, H, W] of a convolution of codes [C, H, W]."""
    dtype = _exact_dtype(op)
    weight, bias = torch.from_numpy(op.weight).to(dtype), torch.from_numpy(op.bias).to(dtype)
    centred = torch.from_numpy(codes).to(dtype)[None] - zero_point
    return functional.conv2d(centred, weight, bias, padding=op.padding, groups=op.groups)[0].numpy()


@cache
def has_onednn_int8() -> bool:
    """Whether oneDNN's int8 convolution is there and gives the right codes on this machine."""
    weight = np.arange(-36, 36, dtype=np.int8).reshape(2, 4, 3, 3)
    tensors = {n: ops.Tensor(n, c, 1, Grid(2.0**-3, z, 255)) for n, c, z in (("x", 4, 3), ("y", 2, 128))}
    scale = np.full(2, 2.0**-8, np.float32)
    op = ops.Convolution("y", "x", weight, np.array([5, -7], np.int32), scale, padding=1, groups=1, relu=False)
    codes = (torch.arange(4 * 25).reshape(1, 4, 5, 5) % 256).to(torch.uint8)
    codes = codes.contiguous(memory_format=torch.channels_last)
    try:
        found = _onednn(op, tensors["x"].grid, tensors["y"].grid)(codes)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return bool((found.int() - _float(op, tensors["x"].grid, tensors["y"].grid)(codes).int()).abs().max() <= 1)


def _prepare(graph: IntegerGraph, op: ops.Convolution) -> Callable[[Tensor], Tensor]:
    source, target = graph.tensors[op.input].grid, graph.tensors[op.output].grid
    return _onednn(op, source, target) if has_onednn_int8() else _float(op, source, target)


def _onednn(op: ops.Convolution, source: Grid, target: Grid) -> Callable[[Tensor], Tensor]:
    onednn: Any = torch.ops.onednn
    weight_scale = torch.from_numpy(op.weight_scale)
    weight_zero = torch.zeros(len(op.bias), dtype=torch.int32)
    bias = torch.from_numpy((op.bias * (np.float64(source.scale) * op.weight_scale)).astype(np.float32))
    geometry = [1, 1], [op.padding] * 2, [1, 1], op.groups
    activation = "relu" if op.relu else "none"
    clip = target.maximum_code < 255
    weight = torch.from_numpy(op.weight)
    packed = onednn.qconv_prepack(weight, weight_scale, source.scale, source.zero_point, *geometry, None)

    def run(codes: Tensor) -> Tensor:
        out = onednn.qconv_pointwise(
            codes,
            source.scale,
            source.zero_point,
            packed,
            weight_scale,
            weight_zero,
            bias,
            *geometry,
            target.scale,
            target.zero_point,
            torch.uint8,
            activation,
            [],
            "",
        )
        return out.clamp_(max=target.maximum_code) if clip else out

    return run


def _exact_dtype(op: ops.Convolution) -> torch.dtype:
    """float32 where all sums of this convolution are certain to be exact in it, else float64."""
    largest = np.abs(op.weight.astype(np.int64)).sum((1, 2, 3)).max() * 255 + np.abs(op.bias.astype(np.int64)).max()
    return torch.float32 if largest < _LARGEST_EXACT else torch.float64


def _float(op: ops.Convolution, source: Grid, target: Grid) -> Callable[[Tensor], Tensor]:
    """The same sums in floating point: float32 where they are certain to be exact, else float64."""
    dtype = _exact_dtype(op)
    weight, bias = torch.from_numpy(op.weight).to(dtype), torch.from_numpy(op.bias).to(dtype)
    multiplier = torch.from_numpy(np.float32(source.scale) * op.weight_scale / np.float32(target.scale))
    lowest = target.zero_point if op.relu else 0

    def run(codes: Tensor) -> Tensor:
        centred = codes.to(dtype) - source.zero_point
        sums = functional.conv2d(centred, weight, bias, padding=op.padding, groups=op.groups).float()
        return _saturate((sums * multiplier[:, None, None]).round_() + target.zero_point, target, lowest)

    return run


def _table(graph: IntegerGraph, op: Operation) -> Tensor | None:
    """The output codes of all input codes, uint8 [256], of an operation that treats every code alike; else None."""
    one_slope = isinstance(op, ops.LeakyRelu) and len(op.slope) == 1
    if graph.is_gated(op) or not (one_slope or isinstance(op, ops.Lookup | ops.Requantize)):
        return None
    codes = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    return torch.from_numpy(reference.compute(graph, op, {ops.sources(op)[0]: codes}).ravel())


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """table[code], channels last."""
    rows = codes.permute(0, 2, 3, 1)
    return table.index_select(0, rows.flatten().int()).view(rows.shape).permute(0, 3, 1, 2)


def _real(graph: IntegerGraph, name: str, values: _Values) -> Tensor:
    grid = graph.tensors[name].grid
    return (values[name].float() - grid.zero_point) * grid.scale


def _round(graph: IntegerGraph, name: str, real: Tensor) -> Tensor:
    grid = graph.tensors[name].grid
    return _saturate((real / grid.scale).round_() + grid.zero_point, grid)


def _saturate(codes: Tensor, grid: Grid, lowest: int = 0) -> Tensor:
    return codes.clamp_(lowest, grid.maximum_code).to(torch.uint8)


def _add(graph: IntegerGraph, op: ops.Add, values: _Values) -> Tensor:
    left, right, target = (graph.tensors[name].grid for name in (op.left, op.right, op.output))
    ratios = left.scale / target.scale, right.scale / target.scale
    zero = target.zero_point - ratios[0] * left.zero_point - ratios[1] * right.zero_point
    total = values[op.right].float().mul_(ratios[1]).add_(zero).add_(values[op.left], alpha=ratios[0])
    return _saturate(total.round_(), target)


def _multiply(graph: IntegerGraph, op: ops.Multiply, values: _Values) -> Tensor:
    left, right, target = (graph.tensors[name].grid for name in (op.left, op.right, op.output))
    product = values[op.left].float().sub_(left.zero_point).mul_(values[op.right].float().sub_(right.zero_point))
    ratio = float(np.float32(left.scale) * np.float32(right.scale) / np.float32(target.scale))
    return _saturate(product.mul_(ratio).add_(target.zero_point).round_(), target)


def _leaky_relu(graph: IntegerGraph, op: ops.LeakyRelu, values: _Values) -> Tensor:
    real = _real(graph, op.input, values)
    return _round(graph, op.output, functional.prelu(real, torch.from_numpy(op.slope)))


def _pad(graph: IntegerGraph, op: ops.Pad, values: _Values) -> Tensor:  # noqa: ARG001
    return functional.pad(values[op.input], [op.amount] * 4, value=op.code)


def _concatenate(graph: IntegerGraph, op: ops.Concatenate, values: _Values) -> Tensor:  # noqa: ARG001
    return torch.cat([values[name] for name in op.inputs], dim=1)


def _pixel_shuffle(graph: IntegerGraph, op: ops.PixelShuffle, values: _Values) -> Tensor:  # noqa: ARG001
    codes, factor = values[op.input], op.factor
    if not op.blocks_first:
        return functional.pixel_shuffle(codes, factor)
    batch, channels, height, width = codes.shape
    blocks = codes.permute(0, 2, 3, 1).reshape(batch, height, width, factor, factor, channels // factor**2)
    rows = blocks.permute(0, 1, 3, 2, 4, 5).reshape(batch, height * factor, width * factor, channels // factor**2)
    return rows.permute(0, 3, 1, 2)


def _repeat_channels(graph: IntegerGraph, op: ops.RepeatChannels, values: _Values) -> Tensor:  # noqa: ARG001
    return values[op.input].repeat_interleave(op.times, dim=1)


def _slice_channels(graph: IntegerGraph, op: ops.SliceChannels, values: _Values) -> Tensor:  # noqa: ARG001
    return values[op.input][:, op.start : op.stop]


def _clip(graph: IntegerGraph, op: ops.Clip, values: _Values) -> Tensor:  # noqa: ARG001
    return values[op.input].clamp(op.lowest, op.highest)


def _channel_clip(graph: IntegerGraph, op: ops.ChannelClip, values: _Values) -> Tensor:  # noqa: ARG001
    lowest, highest = (torch.from_numpy(end)[:, None, None] for end in (op.lowest, op.highest))
    return values[op.input].clamp(lowest, highest)


def _float_program(graph: IntegerGraph, op: ops.FloatProgram, values: _Values) -> Tensor:
    return _round(graph, op.output, run_program(op.steps, _real(graph, op.input, values)))


_KERNELS: dict[type[Operation], Callable[[IntegerGraph, Any, _Values], Tensor]] = {
    ops.Add: _add,
    ops.Multiply: _multiply,
    ops.LeakyRelu: _leaky_relu,
    ops.Pad: _pad,
    ops.Concatenate: _concatenate,
    ops.PixelShuffle: _pixel_shuffle,
    ops.RepeatChannels: _repeat_channels,
    ops.SliceChannels: _slice_channels,
    ops.Clip: _clip,
    ops.ChannelClip: _channel_clip,
    ops.FloatProgram: _float_program,
}
