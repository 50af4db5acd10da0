"""Float programs as ONNX nodes on float32 values [N, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from srquant.integer import program
from srquant.integer.program import Step

if TYPE_CHECKING:
    from srquant.integer.onnx import Writer


def write_program(writer: Writer, name: str, steps: tuple[Step, ...], real: str) -> str:
    """Write the steps; returns the name of the result.

    Args:
        writer: takes the nodes and constants.
        name: what the names of all values begin with.
        steps: the program.
        real: name of the program's input.
    """
    values = {program.INPUT: real}
    for step in steps:
        values[step.output] = _TRANSLATIONS[type(step)](writer, f"{name}.{step.output}", step, values)
    return values[steps[-1].output]


_Values = dict[str, str]


def _convolution(writer: Writer, name: str, step: program.Convolution, values: _Values) -> str:
    constants = [writer.constant(f"{name}.weight", step.weight), writer.constant(f"{name}.bias", step.bias)]
    return writer.node(
        "Conv",
        [values[step.input], *constants],
        name,
        kernel_shape=list(step.weight.shape[2:]),
        strides=[step.stride] * 2,
        pads=[step.padding] * 4,
        group=step.groups,
    )


def _unary(writer: Writer, name: str, step: program.Unary, values: _Values) -> str:
    source = values[step.input]
    if step.function == "square":
        return writer.node("Mul", [source, source], name)
    return writer.node(step.function.capitalize(), [source], name)


def _pool(writer: Writer, name: str, step: program.Pool, values: _Values) -> str:
    kind = "MaxPool" if step.kind == "max" else "AveragePool"
    sizes = {"kernel_shape": [step.size] * 2, "strides": [step.stride] * 2}
    return writer.node(kind, [values[step.input]], name, **sizes)


def _mean(writer: Writer, name: str, step: program.Mean, values: _Values) -> str:
    axes = writer.constant("height_and_width", np.array([2, 3]))
    return writer.node("ReduceMean", [values[step.input], axes], name)


def _grow(writer: Writer, name: str, step: program.Grow, values: _Values) -> str:
    sides = writer.node("Shape", [values[step.input]], f"{name}.sides", start=2)
    size = writer.constant(f"{name}.size", np.array([step.size] * 2))
    rest = writer.node("Sub", [size, sides], f"{name}.rest")
    none = writer.constant("no_sides", np.zeros(2, np.int64))
    ends = writer.node("Max", [rest, none], f"{name}.ends")
    starts = writer.constant("no_starts", np.zeros(6, np.int64))
    pads = writer.node("Concat", [starts, ends], f"{name}.pads", axis=0)
    return writer.node("Pad", [values[step.input], pads], name, mode="edge")


def _resize(writer: Writer, name: str, step: program.Resize, values: _Values) -> str:
    outer = writer.node("Shape", [values[step.input]], f"{name}.outer", end=2)
    inner = writer.node("Shape", [values[step.like]], f"{name}.inner", start=2)
    sizes = writer.node("Concat", [outer, inner], f"{name}.sizes", axis=0)
    modes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return writer.node("Resize", [values[step.input], "", "", sizes], name, **modes)


def _binary(writer: Writer, name: str, step: program.Binary, values: _Values) -> str:
    if isinstance(step.right, str):
        right = values[step.right]
    else:
        right = writer.constant(f"{name}.number", np.asarray(step.right, np.float32))
    return writer.node(_SIGNS[step.kind], [values[step.left], right], name)


_SIGNS = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max"}

_TRANSLATIONS: dict[type[Step], Callable[[Writer, str, Any, _Values], str]] = {
    program.Convolution: _convolution,
    program.Unary: _unary,
    program.Pool: _pool,
    program.Mean: _mean,
    program.Grow: _grow,
    program.Resize: _resize,
    program.Binary: _binary,
}
