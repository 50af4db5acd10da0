"""Exact rewrites of an integer graph: other operations, the same codes.

`pad_picture` pads the picture by an operation of its own instead of by a zero point in the first convolution;
`sink_shuffle` moves the last pixel shuffle behind the last convolution, which then works at low resolution;
`blocks_first` permutes the outputs of a convolution in front of a pixel shuffle, so that the shuffle copies runs
of bytes. Both come from measurements of where integer engines spend their time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from srquant.integer.graph import Convolution, IntegerGraph, Operation, Pad, PixelShuffle, Tensor

_MOST_SUNK_OUTPUTS = 16
"""Matrix units work on 16 outputs at a time; up to there a sunk convolution costs nothing more."""


def optimize(graph: IntegerGraph) -> IntegerGraph:
    """All rewrites, in the order in which they help each other."""
    return blocks_first(sink_shuffle(pad_picture(graph)))


def pad_picture(graph: IntegerGraph) -> IntegerGraph:
    """conv(x - code, zeros around) -> conv'(x padded with code): OpenVINO runs only the latter in int8."""
    picture = graph.tensors[graph.input]
    code, convs = picture.grid.zero_point, graph.readers(graph.input)
    if not all(isinstance(conv, Convolution) for conv in convs):
        return graph
    grid = replace(picture.grid, zero_point=0)
    tensors = dict(graph.tensors) | {graph.input: replace(picture, grid=grid)}
    pads: dict[int, Pad] = {}
    operations: list[Operation] = []
    for operation in graph.operations:
        if isinstance(operation, Convolution) and operation.input == graph.input:
            if operation.padding not in pads:
                pad = Pad(f"{graph.input}_padded{operation.padding}", graph.input, operation.padding, code)
                pads[operation.padding] = pad
                tensors[pad.output] = replace(picture, name=pad.output, grid=grid)
                operations.append(pad)
            constant = code * operation.weight.sum((1, 2, 3), dtype=np.int32)
            padded = pads[operation.padding].output
            operations.append(replace(operation, input=padded, bias=operation.bias - constant, padding=0))
        else:
            operations.append(operation)
    return replace(graph, tensors=tensors, operations=tuple(operations))


def sink_shuffle(graph: IntegerGraph) -> IntegerGraph:
    """conv(shuffle(x)) at the output -> shuffle(conv'(x)), where conv' has few enough outputs."""
    conv = graph.producer(graph.output)
    if not isinstance(conv, Convolution) or conv.groups != 1:
        return graph
    shuffle = graph.producer(conv.input)
    if not isinstance(shuffle, PixelShuffle) or len(graph.readers(conv.input)) != 1:
        return graph
    factor = shuffle.factor
    if conv.weight.shape[0] * factor**2 > _MOST_SUNK_OUTPUTS or conv.weight.shape[2] != 2 * conv.padding + 1:
        return graph
    inner, outer = graph.tensors[shuffle.input], graph.tensors[conv.output]
    weight = _sunk_weight(conv.weight, conv.padding, factor)
    times = factor**2
    sunk = replace(
        conv,
        output=f"{conv.output}_blocks",
        input=shuffle.input,
        weight=weight,
        bias=np.repeat(conv.bias, times),
        weight_scale=np.repeat(conv.weight_scale, times),
        padding=weight.shape[2] // 2,
    )
    blocks = Tensor(sunk.output, outer.channels * times, inner.resolution, outer.grid)
    tensors = {name: t for name, t in graph.tensors.items() if name != conv.input} | {blocks.name: blocks}
    kept = [operation for operation in graph.operations if operation not in (conv, shuffle)]
    moved = PixelShuffle(conv.output, blocks.name, factor)
    return replace(graph, tensors=tensors, operations=(*kept, sunk, moved))


def _sunk_weight(weight: NDArray[np.int8], padding: int, factor: int) -> NDArray[np.int8]:
    """The weight [O*f*f, C*f*f, k', k'] that reads blocks of f*f pixels as channels and writes such blocks."""
    outputs, inputs, size, _ = weight.shape
    reach = -(-padding // factor)
    sunk = np.zeros((outputs, factor, factor, inputs, factor, factor, 2 * reach + 1, 2 * reach + 1), np.int8)
    for row in range(factor):
        for column in range(factor):
            for i in range(size):
                for j in range(size):
                    block_row, inner_row = divmod(row + i - padding, factor)
                    block_column, inner_column = divmod(column + j - padding, factor)
                    at = (inner_row, inner_column, block_row + reach, block_column + reach)
                    sunk[:, row, column, :, *at] = weight[:, :, i, j]
    return sunk.reshape(outputs * factor**2, inputs * factor**2, 2 * reach + 1, 2 * reach + 1)


def block_order(channels: int, factor: int) -> NDArray[np.int64]:
    """The order of the channels in front of a pixel shuffle that makes it one with blocks first."""
    times = factor**2
    return np.arange(channels).reshape(channels // times, times).T.ravel()


def blocks_first(graph: IntegerGraph) -> IntegerGraph:
    """shuffle(conv(x)) -> shuffle'(conv'(x)) with the outputs of the convolution permuted."""
    operations: list[Operation] = list(graph.operations)
    for i, shuffle in enumerate(operations):
        if not isinstance(shuffle, PixelShuffle) or shuffle.blocks_first:
            continue
        conv = graph.producer(shuffle.input)
        if not isinstance(conv, Convolution) or conv.groups != 1 or len(graph.readers(shuffle.input)) != 1:
            continue
        order = block_order(conv.weight.shape[0], shuffle.factor)
        operations[i] = replace(shuffle, blocks_first=True)
        operations[operations.index(conv)] = replace(
            conv, weight=conv.weight[order], bias=conv.bias[order], weight_scale=conv.weight_scale[order]
        )
    return replace(graph, operations=tuple(operations))
