"""An integer graph as an ONNX file of Q/DQ form, which ONNX Runtime and OpenVINO both run with int8 kernels.

The form is the one that neither engine leaves for float (measured): uint8 activations, int8 symmetric weights per
output channel, int32 bias, QuantizeLinear and DequantizeLinear around every computing node; whatever only moves
codes works on the codes; grids of fewer than 8 bits saturate by a Clip on codes. Pictures go in and come out as
uint8 [N, H, W, C] of any size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srquant.errors import missing_package
from srquant.integer import graph as ops
from srquant.integer.functions import is_robust
from srquant.integer.graph import IntegerGraph, Operation
from srquant.integer.onnx_gated import write_gated
from srquant.integer.onnx_program import write_program
from srquant.integer.rewrites import optimize
from srquant.networks.onnx import METADATA_KEY, OPSET
from srquant.quantizers.grid import Grid

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

IR_VERSION = 10
_INT32 = 6
"""The number of the element type in ONNX."""


def to_onnx(graph: IntegerGraph) -> ModelProto:
    """The checked ONNX model of a graph, after the exact rewrites.

    Raises:
        UserError: the package is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", "export to ONNX", "onnx") from error
    model = Writer(optimize(graph)).model()
    onnx.checker.check_model(model, full_check=True)
    return model


class Writer:
    """Collects nodes and constants; every tensor of the graph is one uint8 value of the same name."""

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.real: dict[str, str] = {}

    def model(self) -> ModelProto:
        """The whole model."""
        from onnx import TensorProto, helper

        channels = self.graph.info.channels
        self.node("Transpose", ["picture"], self.graph.input, perm=[0, 3, 1, 2])
        for operation in self.graph.operations:
            write = write_gated if self.graph.is_gated(operation) else _TRANSLATIONS[type(operation)]
            write(self, operation)
        self.node("Transpose", [self.graph.output], "enlarged", perm=[0, 2, 3, 1])
        uint8 = TensorProto.UINT8
        inputs = [helper.make_tensor_value_info("picture", uint8, ["N", "H", "W", channels])]
        outputs = [helper.make_tensor_value_info("enlarged", uint8, ["N", "OH", "OW", channels])]
        body = helper.make_graph(self.nodes, self.graph.info.name, inputs, outputs, list(self.constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION, producer_name="srquant")
        helper.set_model_props(model, {METADATA_KEY: describe_graph(self.graph)})
        return model

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}:{kind}", **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant, or find it again; returns its name."""
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(values.copy(order="C"), name)
        return name

    def grid(self, tensor: str) -> list[str]:
        """Names of the scale and zero point of a tensor."""
        grid = self.graph.tensors[tensor].grid
        scale = self.constant(f"{tensor}.scale", np.asarray(grid.scale, np.float32))
        return [scale, self.constant(f"{tensor}.zero_point", np.asarray(grid.zero_point, np.uint8))]

    def dequantize(self, tensor: str) -> str:
        """The real values of a tensor."""
        if tensor not in self.real:
            self.real[tensor] = self.node("DequantizeLinear", [tensor, *self.grid(tensor)], f"{tensor}.real")
        return self.real[tensor]

    def quantize(self, real: str, tensor: str, lowest: int = 0) -> None:
        """Make a tensor of real values: round, saturate at 0..255, and at the grid's own ends by a Clip."""
        highest = self.graph.tensors[tensor].grid.maximum_code
        clipped = lowest > 0 or highest < 255
        rounded = f"{tensor}.rounded" if clipped else tensor
        self.node("QuantizeLinear", [real, *self.grid(tensor)], rounded)
        if clipped:
            self.node("Clip", [rounded, *self.ends(tensor, lowest, highest)], tensor)

    def ends(self, tensor: str, lowest: int, highest: int) -> list[str]:
        """Names of the lowest and highest code that a tensor may hold."""
        words = {"lowest": lowest, "highest": highest}
        return [self.constant(f"{tensor}.{word}", np.asarray(code, np.uint8)) for word, code in words.items()]

    def weight(self, name: str, codes: NDArray[Any], scale: NDArray[np.float32]) -> str:
        """Dequantised weights or bias, one scale per output channel."""
        inputs = [self.constant(f"{name}.codes", codes), self.constant(f"{name}.scale", scale)]
        return self.node("DequantizeLinear", inputs, f"{name}.real", axis=0)


def _convolution(writer: Writer, op: ops.Convolution) -> None:
    source: Grid = writer.graph.tensors[op.input].grid
    weight = writer.weight(f"{op.output}.weight", op.weight, op.weight_scale)
    bias = writer.weight(f"{op.output}.bias", op.bias, np.float32(source.scale) * op.weight_scale)
    real = writer.node(
        "Conv",
        [writer.dequantize(op.input), weight, bias],
        f"{op.output}.sum",
        kernel_shape=list(op.weight.shape[2:]),
        pads=[op.padding] * 4,
        group=op.groups,
    )
    zero_point = writer.graph.tensors[op.output].grid.zero_point
    writer.quantize(real, op.output, zero_point if op.relu else 0)


def _add(writer: Writer, op: ops.Add) -> None:
    real = writer.node("Add", [_rounded(writer, op.left), _rounded(writer, op.right)], f"{op.output}.sum")
    writer.quantize(real, op.output)


def _rounded(writer: Writer, tensor: str) -> str:
    """The real values of a summand, behind a second, idle pair of Q and DQ if only a convolution made it for this.

    OpenVINO fuses convolution and addition and leaves out the rounding between them, unless it is asked for
    twice, and for a zero point of 0 unless the second time is in int8. ONNX Runtime removes the second pair.
    """
    real, graph = writer.dequantize(tensor), writer.graph
    if not isinstance(graph.producer(tensor), ops.Convolution) or len(graph.readers(tensor)) > 1:
        return real
    grid = writer.grid(tensor)
    if graph.tensors[tensor].grid.zero_point == 0:
        grid[1] = writer.constant(f"{tensor}.zero_point_int8", np.asarray(-128, np.int8))
    codes = writer.node("QuantizeLinear", [real, *grid], f"{tensor}.again")
    return writer.node("DequantizeLinear", [codes, *grid], f"{tensor}.again.real")


def _multiply(writer: Writer, op: ops.Multiply) -> None:
    real = writer.node("Mul", [writer.dequantize(op.left), writer.dequantize(op.right)], f"{op.output}.product")
    writer.quantize(real, op.output)


def _leaky_relu(writer: Writer, op: ops.LeakyRelu) -> None:
    source = writer.dequantize(op.input)
    if len(op.slope) == 1:
        real = writer.node("LeakyRelu", [source], f"{op.output}.leaky", alpha=float(op.slope[0]))
    else:
        slope = writer.constant(f"{op.output}.slope", op.slope[:, None, None])
        real = writer.node("PRelu", [source, slope], f"{op.output}.leaky")
    writer.quantize(real, op.output)


def _requantize(writer: Writer, op: ops.Requantize) -> None:
    writer.quantize(writer.dequantize(op.input), op.output)


def _pad(writer: Writer, op: ops.Pad) -> None:
    sides = writer.constant(f"{op.output}.sides", np.array([0, 0, *[op.amount] * 2, 0, 0, *[op.amount] * 2]))
    code = writer.constant(f"{op.output}.code", np.asarray(op.code, np.uint8))
    writer.node("Pad", [op.input, sides, code], op.output)


def _concatenate(writer: Writer, op: ops.Concatenate) -> None:
    writer.node("Concat", list(op.inputs), op.output, axis=1)


def _pixel_shuffle(writer: Writer, op: ops.PixelShuffle) -> None:
    mode = "DCR" if op.blocks_first else "CRD"
    writer.node("DepthToSpace", [op.input], op.output, blocksize=op.factor, mode=mode)


def _repeat_channels(writer: Writer, op: ops.RepeatChannels) -> None:
    order = np.repeat(np.arange(writer.graph.tensors[op.input].channels), op.times)
    writer.node("Gather", [op.input, writer.constant(f"{op.output}.order", order)], op.output, axis=1)


def _slice_channels(writer: Writer, op: ops.SliceChannels) -> None:
    ends = [np.array([number]) for number in (op.start, op.stop, 1)]
    names = [
        writer.constant(f"{op.output}.{name}", end) for name, end in zip(("start", "stop", "axis"), ends, strict=True)
    ]
    writer.node("Slice", [op.input, *names], op.output)


def _lookup(writer: Writer, op: ops.Lookup) -> None:
    """The function itself where rounding cannot tell it from the table: runtimes have fast kernels for it."""
    source, target = (writer.graph.tensors[name].grid for name in (op.input, op.output))
    if is_robust(op.table, op.function, source, target):
        writer.quantize(_function(writer, op), op.output)
        return
    places = writer.node("Cast", [op.input], f"{op.output}.places", to=_INT32)
    writer.node("Gather", [writer.constant(f"{op.output}.table", op.table), places], op.output)


def _function(writer: Writer, op: ops.Lookup) -> str:
    real, name = writer.dequantize(op.input), f"{op.output}.{op.function.replace(' ', '_')}"
    if op.function == "tanh":
        return writer.node("Tanh", [real], name)
    if op.function == "sigmoid":
        return writer.node("Sigmoid", [real], name)
    sigmoid = writer.node("Sigmoid", [real], f"{op.output}.sigmoid")
    if op.function == "silu":
        return writer.node("Mul", [real, sigmoid], name)
    half = writer.constant("half", np.asarray(0.5, np.float32))
    return writer.node("Sub", [sigmoid, half], name)


def _clip(writer: Writer, op: ops.Clip) -> None:
    writer.node("Clip", [op.input, *writer.ends(op.output, op.lowest, op.highest)], op.output)


def _channel_clip(writer: Writer, op: ops.ChannelClip) -> None:
    lowest, highest = (
        writer.constant(f"{op.output}.{word}", codes[:, None, None])
        for word, codes in (("lowest", op.lowest), ("highest", op.highest))
    )
    raised = writer.node("Max", [op.input, lowest], f"{op.output}.raised") if op.lowest.any() else op.input
    writer.node("Min", [raised, highest], op.output)


def _float_program(writer: Writer, op: ops.FloatProgram) -> None:
    writer.quantize(write_program(writer, op.output, op.steps, writer.dequantize(op.input)), op.output)


_TRANSLATIONS: dict[type[Operation], Callable[[Writer, Any], None]] = {
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


def describe_graph(graph: IntegerGraph) -> str:
    """What the file says about itself, as JSON: enough to run it, tile it and print what it is."""
    told = {"info": asdict(graph.info), "halo": graph.halo, "provenance": dict(graph.provenance)}
    return json.dumps(told, sort_keys=True)
