"""Exact rewrites of an integer graph for LiteRT: the same codes from operations that it has fast kernels for.

A 1x1 convolution of weights 0 and 64 with the step 2^-6 moves codes without a change, so it can repeat and permute
channels; it is far quicker than a gather, which goes byte by byte. Sums of power-of-two grids are full of ties, which
LiteRT's addition rounds up and the reference to even; as a convolution over both summands they are rounded to even.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from srquant.integer import graph as ops
from srquant.integer.graph import IntegerGraph, Operation, Tensor
from srquant.integer.rewrites import block_order, sink_shuffle
from srquant.quantizers.agreement import TAKEN, agree
from srquant.quantizers.grid import Grid

_ONE = 64
"""The weight code that stands for 1: with the step 2^-6 every product is exact."""
_MOST_COPIES = 256
"""A summand of the weight 64 times this is read so many times over; sums stay below 2^24, and are exact."""
_POINTWISE = (ops.Add, ops.ChannelClip, ops.Clip, ops.Lookup, ops.LeakyRelu, ops.Requantize)
"""What may be done to permuted channels as well, its constants permuted with them."""


def prepare(graph: IntegerGraph) -> IntegerGraph:
    """All rewrites, in the order in which they help each other."""
    return permute_shuffles(add_by_convolution(repeat_by_convolution(sink_shuffle(graph))))


def repeat_by_convolution(graph: IntegerGraph) -> IntegerGraph:
    """Repeated channels -> a 1x1 convolution that repeats them."""
    operations: list[Operation] = []
    for operation in graph.operations:
        if isinstance(operation, ops.RepeatChannels):
            order = np.repeat(np.arange(graph.tensors[operation.input].channels), operation.times)
            operation = _choose(graph, operation.output, operation.input, order)
        operations.append(operation)
    return replace(graph, operations=tuple(operations))


def add_by_convolution(graph: IntegerGraph) -> IntegerGraph:
    """Additions on power-of-two grids whose ties LiteRT rounds otherwise -> a 1x1 convolution over both summands."""
    tensors, operations = dict(graph.tensors), list[Operation]()
    for operation in graph.operations:
        weights = _summing_weights(graph, operation) if isinstance(operation, ops.Add) else None
        if weights is None:
            operations.append(operation)
            continue
        assert isinstance(operation, ops.Add)
        left, right = tensors[operation.left], tensors[operation.right]
        copies = [-(-weight // _ONE) for weight in weights]
        parts = [
            replace(left, name=f"{operation.output}_{name}", grid=_wide(left.grid), channels=left.channels * times)
            for name, times in zip(("left", "right"), copies, strict=True)
        ]
        both = replace(parts[0], name=f"{operation.output}_both", channels=sum(part.channels for part in parts))
        tensors |= {tensor.name: tensor for tensor in (*parts, both)}
        operations += [
            *(_relabel(source, target) for source, target in zip((left, right), parts, strict=True)),
            ops.Concatenate(both.name, (parts[0].name, parts[1].name)),
            _sum(operation.output, both, left.channels, weights, right.grid),
        ]
    return replace(graph, tensors=tensors, operations=tuple(operations))


def permute_shuffles(graph: IntegerGraph) -> IntegerGraph:
    """Every shuffle -> one with blocks first, its input's channels permuted where they are made."""
    return _Permutation(graph).run()


class _Permutation:
    def __init__(self, graph: IntegerGraph) -> None:
        self.graph = graph
        self.tensors = dict(graph.tensors)
        self.operations = list(graph.operations)
        self.moved: dict[tuple[str, bytes], str] = {}

    def run(self) -> IntegerGraph:
        for shuffle in self.graph.operations:
            if isinstance(shuffle, ops.PixelShuffle) and not shuffle.blocks_first:
                source = self.permute(shuffle.input, block_order(self.tensors[shuffle.input].channels, shuffle.factor))
                self.operations[self.operations.index(shuffle)] = replace(shuffle, input=source, blocks_first=True)
        return replace(self.graph, tensors=self.tensors, operations=tuple(self.operations))

    def permute(self, tensor: str, order: NDArray[np.int64]) -> str:
        """Make a tensor's channels come in another order; the name of the tensor that has them so."""
        made = self.graph.producer(tensor)
        if not self.is_free(tensor):
            key = tensor, order.tobytes()
            if key not in self.moved:
                self.moved[key] = name = f"{tensor}_permuted{len(self.moved)}"
                self.tensors[name] = replace(self.tensors[tensor], name=name)
                place = 0 if made is None else self.place(made.output) + 1
                self.operations.insert(place, _choose(self.graph, name, tensor, order))
            return self.moved[key]
        place = self.place(tensor)
        operation = self.operations[place]
        if isinstance(operation, ops.Convolution):
            changed: Operation = replace(
                operation,
                weight=operation.weight[order],
                bias=operation.bias[order],
                weight_scale=operation.weight_scale[order],
            )
        elif isinstance(operation, ops.Add):
            left = self.permute(operation.left, order)
            right = left if operation.right == operation.left else self.permute(operation.right, order)
            changed = replace(operation, left=left, right=right)
        else:
            assert isinstance(operation, ops.ChannelClip | ops.Clip | ops.Lookup | ops.LeakyRelu | ops.Requantize)
            changed = _permuted(replace(operation, input=self.permute(operation.input, order)), order)
        self.operations[self.place(tensor)] = changed
        return tensor

    def place(self, tensor: str) -> int:
        """Where in the list a tensor is made."""
        return next(i for i, operation in enumerate(self.operations) if operation.output == tensor)

    def is_free(self, tensor: str) -> bool:
        """Whether the order of a tensor's channels is nobody else's concern, up to convolutions that make them."""
        made = self.graph.producer(tensor)
        if len(self.graph.readers(tensor)) > 1 or tensor == self.graph.output:
            return False
        if isinstance(made, ops.Convolution):
            return made.groups == 1
        return isinstance(made, _POINTWISE) and all(map(self.is_free, set(ops.sources(made))))


def _permuted(op: Operation, order: NDArray[np.int64]) -> Operation:
    """An operation whose constants per channel, if it has any, come in another order."""
    if isinstance(op, ops.LeakyRelu) and len(op.slope) > 1:
        return replace(op, slope=op.slope[order])
    if isinstance(op, ops.ChannelClip):
        return replace(op, lowest=op.lowest[order], highest=op.highest[order])
    return op


def _choose(graph: IntegerGraph, output: str, source: str, order: NDArray[np.int64]) -> ops.Convolution:
    """A convolution whose output channel i is the input channel order[i], code by code."""
    weight = np.zeros((len(order), graph.tensors[source].channels, 1, 1), np.int8)
    weight[np.arange(len(order)), order] = _ONE
    return _pointwise(output, source, weight, np.zeros(len(order), np.int32), 1 / _ONE)


def _relabel(source: Tensor, target: Tensor) -> ops.Convolution:
    """A depthwise convolution that leaves the codes as they are and gives them another grid; repeats the channels."""
    weight = np.full((target.channels, 1, 1, 1), _ONE, np.int8)
    shift = _ONE * (source.grid.zero_point - target.grid.zero_point)
    scale = np.float32(target.grid.scale) / np.float32(source.grid.scale) / _ONE
    bias = np.full(target.channels, shift, np.int32)
    return _pointwise(target.name, source.name, weight, bias, float(scale), groups=source.channels)


def _sum(output: str, both: Tensor, channels: int, weights: tuple[int, int], right: Grid) -> ops.Convolution:
    """The sum of the two parts of a tensor, the right one on a grid of its own although it is told another.

    The channels of a part are repeated where one weight code does not hold the weight.
    """
    columns = [np.eye(channels, dtype=np.int8).repeat(-(-w // _ONE), axis=1) * np.int8(min(w, _ONE)) for w in weights]
    weight = np.concatenate(columns, axis=1)[..., None, None]
    bias = np.full(channels, weights[1] * (both.grid.zero_point - right.zero_point), np.int32)
    return _pointwise(output, both.name, weight, bias, 1 / weights[0])


def _pointwise(
    output: str, source: str, weight: NDArray[np.int8], bias: NDArray[np.int32], scale: float, groups: int = 1
) -> ops.Convolution:
    scales = np.full(len(weight), scale, np.float32)
    return ops.Convolution(output, source, weight, bias, scales, padding=0, groups=groups, relu=False)


def _summing_weights(graph: IntegerGraph, add: ops.Add) -> tuple[int, int] | None:
    """Weights whose ratio is that of the summands' scales; None where LiteRT's addition is right or none fit."""
    grids = graph.tensors[add.left].grid, graph.tensors[add.right].grid, graph.tensors[add.output].grid
    if not all(_is_power_of_two(grid.scale) for grid in grids) or agree("add", grids):
        return None
    ratio = grids[0].scale / grids[1].scale
    weights = (max(1, round(ratio)), max(1, round(1 / ratio)))
    multiplier = grids[0].scale / weights[0] / grids[2].scale
    fits = max(weights) <= _ONE * _MOST_COPIES and multiplier < TAKEN["convolution"][1]
    return weights if fits else None


def _wide(grid: Grid) -> Grid:
    return replace(grid, maximum_code=255)


def _is_power_of_two(value: float) -> bool:
    return float(np.log2(value)).is_integer()
