"""Gates in an ONNX file: float32 nodes choose the scale, the convolution between stays on codes.

A gated tensor is `round(x / scale)`, clipped to the picture's range, on a static grid of step 1 around
`GATED_ZERO`; whoever reads it multiplies by the scale afterwards. So a convolution keeps its integer kernel where
the runtime has one whose output is float (OpenVINO); ONNX Runtime computes such a convolution in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from srquant.integer import graph as ops
from srquant.quantizers.grid import SMALLEST_RANGE

if TYPE_CHECKING:
    from srquant.integer.onnx import Writer

_GATE_STEPS = 3.0


def write_gated(writer: Writer, operation: ops.Operation) -> None:
    """Translate one operation that reads or makes a gated or real tensor."""
    name = operation.output
    if isinstance(operation, ops.GatedRound):
        _gated_round(writer, operation)
        return
    if isinstance(operation, ops.Convolution):
        result = _convolution(writer, operation)
    elif isinstance(operation, ops.Add):
        result = writer.node("Add", [_real(writer, operation.left), _real(writer, operation.right)], f"{name}.sum")
    elif isinstance(operation, ops.Concatenate):
        result = writer.node("Concat", [_real(writer, one) for one in operation.inputs], f"{name}.whole", axis=1)
    elif isinstance(operation, ops.LeakyRelu):
        slope = writer.constant(f"{name}.slope", operation.slope[:, None, None])
        result = writer.node("PRelu", [_real(writer, operation.input), slope], f"{name}.leaky")
    else:
        assert isinstance(operation, ops.Requantize), operation
        result = _real(writer, operation.input)
    if writer.graph.tensors[name].kind == "real":
        writer.node("Identity", [result], name)
    else:
        writer.quantize(result, name)


def _real(writer: Writer, tensor: str) -> str:
    """The real values of a tensor of any kind."""
    kind = writer.graph.tensors[tensor].kind
    if kind == "real":
        return tensor
    if kind == "codes":
        return writer.dequantize(tensor)
    if tensor not in writer.real:
        product = [_multiples(writer, tensor), ops.picture_scale(tensor)]
        writer.real[tensor] = writer.node("Mul", product, f"{tensor}.real")
    return writer.real[tensor]


def _multiples(writer: Writer, tensor: str) -> str:
    name = f"{tensor}.multiples"
    if name not in writer.real:
        writer.real[name] = writer.node("DequantizeLinear", [tensor, *_unit_grid(writer)], name)
    return name


def _unit_grid(writer: Writer) -> list[str]:
    step = writer.constant("gated.step", np.asarray(1, np.float32))
    return [step, writer.constant("gated.zero_point", np.asarray(ops.GATED_ZERO, np.uint8))]


def _convolution(writer: Writer, op: ops.Convolution) -> str:
    source, name = writer.graph.tensors[op.input], op.output
    gated = source.kind == "gated"
    weight = writer.weight(f"{name}.weight", op.weight, op.weight_scale)
    bias = (op.bias.astype(np.float32) * (np.float32(source.grid.scale) * op.weight_scale))[:, None, None]
    result = writer.node(
        "Conv",
        [_multiples(writer, op.input) if gated else writer.dequantize(op.input), weight],
        f"{name}.products",
        kernel_shape=list(op.weight.shape[2:]),
        pads=[op.padding] * 4,
        group=op.groups,
    )
    if gated:
        result = writer.node("Mul", [result, ops.picture_scale(op.input)], f"{name}.scaled")
    result = writer.node("Add", [result, writer.constant(f"{name}.bias", bias)], f"{name}.biased")
    return writer.node("Relu", [result], f"{name}.relu") if op.relu else result


def _gated_round(writer: Writer, op: ops.GatedRound) -> None:
    name, source, picture_grid = op.output, _real(writer, op.input), op.picture_grid
    gate, top = picture_grid.gate, float(2**picture_grid.bits - 1)

    def number(text: str, value: float) -> str:
        return writer.constant(f"{name}.{text}", np.asarray(value, np.float32))

    def node(kind: str, inputs: list[str], text: str) -> str:
        return writer.node(kind, inputs, f"{name}.{text}")

    pooled = writer.node("GlobalAveragePool", [source], f"{name}.pooled")
    column = writer.constant(f"{name}.column", np.array([-1, 1]))
    means = writer.node("Reshape", [pooled, column], f"{name}.means")
    first = [writer.constant(f"{name}.first", gate.first), _rounded(writer, means, f"{name}.means")]
    hidden = node("Mul", [node("MatMul", first, "hidden"), _column(writer, f"{name}.norm", gate.scale)], "normed")
    hidden = node("Relu", [node("Add", [hidden, _column(writer, f"{name}.shift", gate.shift)], "shifted")], "features")
    second = [writer.constant(f"{name}.second", gate.second), _rounded(writer, hidden, f"{name}.features")]
    factors = node("Sigmoid", [node("MatMul", second, "logits")], "half_factors")
    ends = np.array([[2 * picture_grid.upper], [2 * picture_grid.lower]], np.float32)
    bounds = node("Mul", [factors, writer.constant(f"{name}.ends", ends)], "bounds")
    limits = writer.constant(f"{name}.limits", np.array([[0], [-np.inf]], np.float32))
    ceilings = writer.constant(f"{name}.ceilings", np.array([[np.inf], [0]], np.float32))
    bounds = node("Min", [node("Max", [bounds, limits], "widened_up"), ceilings], "widened")
    signs = writer.constant(f"{name}.signs", np.array([[1, -1]], np.float32))
    width = writer.node("MatMul", [signs, bounds], f"{name}.width")
    width = node("Max", [width, number("least", SMALLEST_RANGE)], "safe_width")
    shape = writer.constant("gated.scalar", np.array([1, 1, 1, 1]))
    step = node("Div", [width, number("top", top)], "step")
    scale = writer.node("Reshape", [step, shape], ops.picture_scale(name))
    lower_only = writer.constant(f"{name}.lower_only", np.array([[0, -1]], np.float32))
    below = writer.node("MatMul", [lower_only, bounds], f"{name}.below")
    zero = node("Reshape", [node("Round", [node("Div", [below, step], "zero_real")], "zero_whole"), shape], "zero")
    zero = node("Min", [node("Max", [zero, number("none", 0)], "zero_up"), number("highest", top)], "zero_point")
    multiples = node("Round", [node("Div", [source, scale], "divided")], "whole")
    lowest, highest = node("Neg", [zero], "lowest"), node("Sub", [number("levels", top), zero], "highest_multiple")
    clipped = node("Min", [node("Max", [multiples, lowest], "clipped_below"), highest], "clipped")
    writer.node("QuantizeLinear", [clipped, *_unit_grid(writer)], name)


def _column(writer: Writer, name: str, values: np.ndarray) -> str:
    return writer.constant(name, values[:, None])


def _rounded(writer: Writer, values: str, name: str) -> str:
    """A column rounded to 2 bit between its own ends, as `srquant.quantizers.gating` does."""

    def number(text: str, value: float) -> str:
        return writer.constant(f"{name}.{text}", np.asarray(value, np.float32))

    def node(kind: str, inputs: list[str], text: str) -> str:
        return writer.node(kind, inputs, f"{name}.{text}")

    lower, upper = node("ReduceMin", [values], "least"), node("ReduceMax", [values], "most")
    least = node(
        "Mul",
        [node("Add", [node("Abs", [lower], "size"), number("one", 1)], "more"), number("epsilon", SMALLEST_RANGE)],
        "floor",
    )
    width = node("Max", [node("Sub", [upper, lower], "spread"), least], "span")
    steps = node("Div", [number("steps", _GATE_STEPS), width], "per_unit")
    zero = node(
        "Add", [node("Round", [node("Mul", [steps, lower], "bottom")], "bottom_whole"), number("two", 2)], "zero"
    )
    codes = node("Round", [node("Sub", [node("Mul", [steps, values], "raised"), zero], "placed")], "codes")
    return node("Div", [node("Add", [codes, zero], "back"), steps], "rounded")
