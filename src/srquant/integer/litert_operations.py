"""The translation of every operation of an integer graph into operators of a LiteRT file.

Which operators give the reference's codes was tried on all codes (see `srquant.integer.litert_kernels`): LiteRT's own
requantisation, leaky ReLU and PReLU do not, depthwise 1x1 convolutions and maxima of them do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srquant.integer import graph as ops
from srquant.integer.graph import Operation
from srquant.integer.litert_float import write_program
from srquant.integer.litert_kernels import Scaling, function_kernel, rectifier, requantizer, table_of
from srquant.integer.litert_writer import Writer, label, offset

_NONE, _RELU = 0, 1
_SAME, _VALID = 0, 1
_UNIT = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}


def _convolution(writer: Writer, op: ops.Convolution) -> None:
    file, source = writer.file, writer.index[op.input]
    outputs, per_group, rows, columns = op.weight.shape
    _, height, width, channels = file.shape(source)
    same = rows == columns == 2 * op.padding + 1
    if op.padding and not same:
        source = _padded(writer, op.input, op.padding, f"{op.output}_padded")
    depthwise = per_group == 1 and op.groups == channels
    grid = writer.graph.tensors[op.input].grid
    weight = op.weight.transpose(1, 2, 3, 0) if depthwise else op.weight.transpose(0, 2, 3, 1)
    constants = [
        file.constant(f"{op.output}_weight", np.ascontiguousarray(weight), op.weight_scale, 0, 3 if depthwise else 0),
        file.constant(f"{op.output}_bias", op.bias, np.float32(grid.scale) * op.weight_scale),
    ]
    border = 2 * op.padding + 1
    settings: dict[str, Any] = {
        **_UNIT,
        "padding": _SAME if same else _VALID,
        "fusedActivationFunction": _RELU if op.relu else _NONE,
    }
    if depthwise:
        settings["depthMultiplier"] = outputs // channels
    writer.write(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [source, *constants],
        op.output,
        [1, height + border - rows, width + border - columns, outputs],
        "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
        within=op.relu,
        **settings,
    )


def _padded(writer: Writer, tensor: str, amount: int, name: str) -> int:
    """A tensor with `amount` rows and columns of its zero point on every side."""
    source = writer.index[tensor]
    _, height, width, channels = writer.file.shape(source)
    shape = [1, height + 2 * amount, width + 2 * amount, channels]
    made = writer.codes(name, shape, writer.graph.tensors[tensor].grid)
    return writer.file.operator("PAD", [source, writer.sides(amount)], made, "PadOptions")


def _add(writer: Writer, op: ops.Add) -> None:
    inputs = [writer.index[op.left], writer.index[op.right]]
    writer.write("ADD", inputs, op.output, writer.file.shape(inputs[0]), "AddOptions")


def _multiply(writer: Writer, op: ops.Multiply) -> None:
    inputs = [writer.index[op.left], writer.index[op.right]]
    shape = np.broadcast_shapes(*map(writer.file.shape, inputs))
    writer.write("MUL", inputs, op.output, shape, "MulOptions")


def _leaky_relu(writer: Writer, op: ops.LeakyRelu) -> None:
    parts, source = rectifier(writer.graph, op), writer.index[op.input]
    if parts is None:
        _gather(writer, op)
        return
    shape, grid = writer.file.shape(source), writer.graph.tensors[op.output].grid
    positive, negative = (writer.codes(f"{op.output}_{sign}", shape, grid) for sign in ("positive", "negative"))
    if parts.form == "maximum":
        _scale(writer, parts.positive, source, op.input, positive)
        _scale(writer, parts.negative, source, op.input, negative)
        writer.write("MAXIMUM", [positive, negative], op.output, shape, "MaximumMinimumOptions")
        return
    _scale(writer, parts.positive, source, op.input, positive, _RELU)
    reading = writer.graph.tensors[op.input].grid
    low = writer.limit("MINIMUM", source, f"{op.output}_below_zero", reading, reading.zero_point)
    _scale(writer, parts.negative, low, op.input, negative)
    writer.write("ADD", [positive, negative], op.output, shape, "AddOptions")


def _requantize(writer: Writer, op: ops.Requantize) -> None:
    scaling, source = requantizer(writer.graph, op), writer.index[op.input]
    if scaling is None:
        _gather(writer, op)
        return
    inputs, settings = _scaling_inputs(writer, scaling, source, op.input)
    writer.write(
        "DEPTHWISE_CONV_2D", inputs, op.output, writer.file.shape(source), "DepthwiseConv2DOptions", **settings
    )


def _scale(writer: Writer, scaling: Scaling, source: int, tensor: str, target: int, activation: int = _NONE) -> None:
    """Fill the file's tensor `target` by a depthwise convolution of `source`, which is on the grid of `tensor`."""
    inputs, settings = _scaling_inputs(writer, scaling, source, tensor)
    settings["fusedActivationFunction"] = activation
    writer.file.operator("DEPTHWISE_CONV_2D", inputs, target, "DepthwiseConv2DOptions", **settings)


def _scaling_inputs(writer: Writer, scaling: Scaling, source: int, tensor: str) -> tuple[list[int], dict[str, Any]]:
    channels = writer.file.shape(source)[3]
    weight, scale = (np.broadcast_to(part, (channels,)).copy() for part in (scaling.weight, scaling.scale))
    bias = np.float32(writer.graph.tensors[tensor].grid.scale) * scale
    inputs = [
        source,
        writer.file.constant("factors", weight.reshape(1, 1, 1, channels), scale, 0, 3),
        writer.file.constant("no_bias", np.zeros(channels, np.int32), bias),
    ]
    return inputs, {**_UNIT, "padding": _VALID, "depthMultiplier": 1}


def _pad(writer: Writer, op: ops.Pad) -> None:
    grid = writer.graph.tensors[op.input].grid
    if op.code == grid.zero_point:
        writer.index[op.output] = _padded(writer, op.input, op.amount, op.output)
        return
    source = writer.index[op.input]
    _, height, width, channels = writer.file.shape(source)
    code = writer.file.constant(f"{op.output}_code", np.array([op.code + offset(grid)], np.int8), *label(grid))
    shape = [1, height + 2 * op.amount, width + 2 * op.amount, channels]
    inputs = [source, writer.sides(op.amount), code]
    writer.write("PADV2", inputs, op.output, shape, "PadV2Options", within=True)


def _concatenate(writer: Writer, op: ops.Concatenate) -> None:
    inputs = [writer.index[name] for name in op.inputs]
    shape = [*writer.file.shape(inputs[0])[:3], sum(writer.file.shape(part)[3] for part in inputs)]
    writer.write("CONCATENATION", inputs, op.output, shape, "ConcatenationOptions", within=True, axis=3)


def _pixel_shuffle(writer: Writer, op: ops.PixelShuffle) -> None:
    assert op.blocks_first
    source = writer.index[op.input]
    _, height, width, channels = writer.file.shape(source)
    shape = [1, height * op.factor, width * op.factor, channels // op.factor**2]
    settings = {"within": True, "blockSize": op.factor}
    writer.write("DEPTH_TO_SPACE", [source], op.output, shape, "DepthToSpaceOptions", **settings)


def _slice_channels(writer: Writer, op: ops.SliceChannels) -> None:
    source = writer.index[op.input]
    shape = [*writer.file.shape(source)[:3], op.stop - op.start]
    start = writer.file.constant(f"{op.output}_start", np.array([0, 0, 0, op.start], np.int32))
    size = writer.file.constant(f"{op.output}_size", np.array(shape, np.int32))
    writer.write("SLICE", [source, start, size], op.output, shape, "SliceOptions", within=True)


def _lookup(writer: Writer, op: ops.Lookup) -> None:
    source, kind = writer.index[op.input], function_kernel(writer.graph, op)
    if kind is None:
        _gather(writer, op)
    else:
        writer.write(kind, [source], op.output, writer.file.shape(source), within=True)


def _gather(writer: Writer, op: ops.Lookup | ops.LeakyRelu | ops.Requantize) -> None:
    """A function of one code by a table of all of them; exact, but code by code."""
    source, file = writer.index[op.input], writer.file
    shape, rows = file.shape(source), table_of(writer.graph, op)
    reading, target = (writer.graph.tensors[name].grid for name in (op.input, op.output))
    starts = (np.arange(len(rows)) * rows.shape[1] - offset(reading)).astype(np.int32)
    cast = file.operator("CAST", [source], file.tensor(f"{op.output}_cast", shape, "int32"), "CastOptions", **_CAST)
    start = file.constant(f"{op.output}_starts", starts)
    places = file.operator("ADD", [cast, start], file.tensor(f"{op.output}_places", shape, "int32"), "AddOptions")
    codes: NDArray[np.int8] = (rows.ravel().astype(np.int16) + offset(target)).astype(np.int8)
    table = file.constant(f"{op.output}_table", codes, *label(target))
    writer.write("GATHER", [table, places], op.output, shape, "GatherOptions", within=True, axis=0)


_CAST = {"inDataType": 9, "outDataType": 2}
"""From int8 to int32, as the schema numbers them."""


def _clip(writer: Writer, op: ops.Clip) -> None:
    made, grid = writer.index[op.input], writer.graph.tensors[op.input].grid
    if op.highest < grid.maximum_code:
        made = writer.limit("MINIMUM", made, f"{op.output}_highest", grid, op.highest)
    if op.lowest > 0:
        made = writer.limit("MAXIMUM", made, f"{op.output}_lowest", grid, op.lowest)
    writer.index[op.output] = made


def _channel_clip(writer: Writer, op: ops.ChannelClip) -> None:
    made, grid = writer.index[op.input], writer.graph.tensors[op.input].grid
    if op.lowest.any():
        made = writer.limit("MAXIMUM", made, f"{op.output}_raised", grid, op.lowest)
    writer.index[op.output] = writer.limit("MINIMUM", made, op.output, grid, op.highest)


TRANSLATIONS: dict[type[Operation], Callable[[Writer, Any], None]] = {
    ops.Convolution: _convolution,
    ops.Add: _add,
    ops.Multiply: _multiply,
    ops.LeakyRelu: _leaky_relu,
    ops.Requantize: _requantize,
    ops.Pad: _pad,
    ops.Concatenate: _concatenate,
    ops.PixelShuffle: _pixel_shuffle,
    ops.SliceChannels: _slice_channels,
    ops.Lookup: _lookup,
    ops.Clip: _clip,
    ops.ChannelClip: _channel_clip,
    ops.FloatProgram: write_program,
}
