"""Operations without an integer form in a LiteRT file: dequantised, computed in float32, rounded again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from srquant.integer import graph as ops
from srquant.integer import program
from srquant.integer.litert_writer import Writer

_UNARY = {"relu": "RELU", "sigmoid": "LOGISTIC", "exp": "EXP", "sqrt": "SQRT", "square": "SQUARE"}
_BINARY = {
    "add": ("ADD", "AddOptions"),
    "subtract": ("SUB", "SubOptions"),
    "multiply": ("MUL", "MulOptions"),
    "divide": ("DIV", "DivOptions"),
    "maximum": ("MAXIMUM", "MaximumMinimumOptions"),
}


def write_program(writer: Writer, op: ops.FloatProgram) -> None:
    """Write a float program; its steps are named after its output."""
    _Program(writer, op).write()


class _Program:
    def __init__(self, writer: Writer, op: ops.FloatProgram) -> None:
        self.writer, self.file, self.op = writer, writer.file, op
        self.held: dict[str, int] = {}

    def write(self) -> None:
        source = self.writer.index[self.op.input]
        self.held[program.INPUT] = self.made("DEQUANTIZE", [source], "input", self.file.shape(source))
        for step in self.op.steps:
            self.held[step.output] = _STEPS[type(step)](self, step)
        last = self.held[self.op.steps[-1].output]
        self.writer.write("QUANTIZE", [last], self.op.output, self.file.shape(last), "QuantizeOptions")

    def made(
        self, kind: str, inputs: list[int], name: str, shape: list[int], options: str | None = None, **settings: Any
    ) -> int:
        """Add an operator whose result is float32; returns its tensor."""
        output = self.file.tensor(f"{self.op.output}_{name}", shape, "float32")
        return self.file.operator(kind, inputs, output, options, **settings)

    def convolution(self, step: program.Convolution) -> int:
        source = self.padded(step)
        _, height, width, channels = self.file.shape(source)
        outputs, per_group, rows, columns = step.weight.shape
        shape = [1, (height - rows) // step.stride + 1, (width - columns) // step.stride + 1, outputs]
        depthwise = per_group == 1 and step.groups == channels
        weight = step.weight.transpose(1, 2, 3, 0) if depthwise else step.weight.transpose(0, 2, 3, 1)
        inputs = [
            source,
            self.file.constant(f"{self.op.output}_{step.output}_weight", np.ascontiguousarray(weight, np.float32)),
            self.file.constant(f"{self.op.output}_{step.output}_bias", step.bias.astype(np.float32)),
        ]
        settings: dict[str, Any] = {"padding": 1, "strideH": step.stride, "strideW": step.stride}
        settings |= {"dilationHFactor": 1, "dilationWFactor": 1}
        if depthwise:
            settings["depthMultiplier"] = outputs // channels
        kind, options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        return self.made(kind, inputs, step.output, shape, options, **settings)

    def padded(self, step: program.Convolution) -> int:
        source, amount = self.held[step.input], step.padding
        if amount == 0:
            return source
        _, height, width, channels = self.file.shape(source)
        shape = [1, height + 2 * amount, width + 2 * amount, channels]
        return self.made("PAD", [source, self.writer.sides(amount)], f"{step.output}_padded", shape, "PadOptions")

    def unary(self, step: program.Unary) -> int:
        source = self.held[step.input]
        return self.made(_UNARY[step.function], [source], step.output, self.file.shape(source))

    def pool(self, step: program.Pool) -> int:
        source = self.held[step.input]
        _, height, width, channels = self.file.shape(source)
        shape = [1, (height - step.size) // step.stride + 1, (width - step.size) // step.stride + 1, channels]
        settings = {
            "padding": 1,
            "strideH": step.stride,
            "strideW": step.stride,
            "filterHeight": step.size,
            "filterWidth": step.size,
        }
        kind = "MAX_POOL_2D" if step.kind == "max" else "AVERAGE_POOL_2D"
        return self.made(kind, [source], step.output, shape, "Pool2DOptions", **settings)

    def mean(self, step: program.Mean) -> int:
        source = self.held[step.input]
        axes = self.file.constant("height_and_width", np.array([1, 2], np.int32))
        shape = [1, 1, 1, self.file.shape(source)[3]]
        return self.made("MEAN", [source, axes], step.output, shape, "ReducerOptions", keepDims=True)

    def grown(self, step: program.Grow) -> int:
        source = self.held[step.input]
        for axis in (1, 2):
            shape = self.file.shape(source)
            if shape[axis] < step.size:
                rows = np.minimum(np.arange(step.size), shape[axis] - 1).astype(np.int32)
                shape[axis] = step.size
                inputs = [source, self.file.constant(f"{self.op.output}_{step.output}_{axis}", rows)]
                source = self.made("GATHER", inputs, f"{step.output}_{axis}", shape, "GatherOptions", axis=axis)
        return source

    def resize(self, step: program.Resize) -> int:
        source, like = self.held[step.input], self.file.shape(self.held[step.like])
        size = self.file.constant(f"{self.op.output}_{step.output}_size", np.array(like[1:3], np.int32))
        shape = [*like[:3], self.file.shape(source)[3]]
        options = {"alignCorners": False, "halfPixelCenters": True}
        return self.made("RESIZE_BILINEAR", [source, size], step.output, shape, "ResizeBilinearOptions", **options)

    def binary(self, step: program.Binary) -> int:
        left = self.held[step.left]
        if isinstance(step.right, str):
            right = self.held[step.right]
        else:
            right = self.file.constant(f"number_{step.right}", np.full((1, 1, 1, 1), step.right, np.float32))
        shape = list(np.broadcast_shapes(self.file.shape(left), self.file.shape(right)))
        kind, options = _BINARY[step.kind]
        return self.made(kind, [left, right], step.output, shape, options)


_STEPS: dict[type[program.Step], Callable[[_Program, Any], int]] = {
    program.Convolution: _Program.convolution,
    program.Unary: _Program.unary,
    program.Pool: _Program.pool,
    program.Mean: _Program.mean,
    program.Grow: _Program.grown,
    program.Resize: _Program.resize,
    program.Binary: _Program.binary,
}
