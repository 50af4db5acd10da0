"""A float layer becomes a float program: traced by torch.fx, one step per operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from srquant.errors import UserError
from srquant.integer import program
from srquant.integer.program import Step
from srquant.networks.layers import FloatLayer, Grow, ResizeLike
from srquant.networks.tracing import trace_inside


def program_of(name: str, layer: FloatLayer) -> tuple[Step, ...]:
    """The steps of a layer.

    Args:
        name: what people call the layer, for errors.
        layer: any number of inputs of one tensor; see `FloatLayer`.

    Raises:
        UserError: an operation inside has no step; layer, operation and the known ones are named.
    """
    graph_module = trace_inside(layer)
    steps: list[Step] = []
    values: dict[fx.Node, str] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            values[node] = program.INPUT
        elif node.op != "output":
            step = _step(graph_module, node, values)
            if step is None:
                raise UserError(
                    f"the layer '{name}' ({type(layer).__name__}) computes {_told(graph_module, node)}, which has no "
                    f"step in a float program; known are {', '.join(sorted(_known()))}"
                )
            steps.append(step)
            values[node] = step.output
    return tuple(steps)


_Arguments = list[Any]
"""Of a node: values by name, numbers as they are."""


def _step(graph_module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, str]) -> Step | None:
    arguments: _Arguments = [values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
    if not arguments or not isinstance(arguments[0], str):
        return None
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        translate = _MODULES.get(type(module))
        return translate(node.name, arguments, module) if translate else None
    word = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.kwargs and word != "mean":
        return None
    if word in _UNARY and len(arguments) == 1:
        return program.Unary(node.name, arguments[0], _UNARY[word])
    if word in _BINARY and len(arguments) == 2 and isinstance(arguments[1], str | int | float):
        right = arguments[1] if isinstance(arguments[1], str) else float(arguments[1])
        return program.Binary(node.name, arguments[0], right, _BINARY[word])
    if word == "mean" and (arguments[1:], node.kwargs) in _GLOBAL_MEANS:
        return program.Mean(node.name, arguments[0])
    return None


_UNARY: dict[Any, program.Function] = {
    "relu": "relu",
    "sigmoid": "sigmoid",
    "exp": "exp",
    "sqrt": "sqrt",
    "square": "square",
}
_BINARY: dict[Any, Any] = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "clamp_min": "maximum",
}
"""Names of functions and methods; those of `operator` for signs."""

_GLOBAL_MEANS = (([], {"dim": (2, 3), "keepdim": True}), ([(2, 3)], {"keepdim": True}), ([(2, 3), True], {}))


def _convolution(output: str, arguments: _Arguments, module: nn.Conv2d) -> Step | None:
    size, stride, padding = (_side(part) for part in (module.kernel_size, module.stride, module.padding))
    if not (size and stride) or padding is None or _side(module.dilation) != 1 or module.padding_mode != "zeros":
        return None
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
    return program.Convolution(
        output, arguments[0], _array(module.weight), _array(bias), stride, padding, module.groups
    )


def _pool(kind: Any) -> Callable[[str, _Arguments, Any], Step | None]:
    def translate(output: str, arguments: _Arguments, module: nn.MaxPool2d | nn.AvgPool2d) -> Step | None:
        size, stride = _side(module.kernel_size), _side(module.stride)
        plain = _side(module.padding) == 0 and _side(getattr(module, "dilation", 1)) == 1 and not module.ceil_mode
        if not (size and stride and plain) or getattr(module, "divisor_override", None):
            return None
        return program.Pool(output, arguments[0], kind, size, stride)

    return translate


def _unary(function: program.Function) -> Callable[[str, _Arguments, Any], Step]:
    return lambda output, arguments, _: program.Unary(output, arguments[0], function)


_MODULES: dict[type[nn.Module], Callable[[str, _Arguments, Any], Step | None]] = {
    nn.Conv2d: _convolution,
    nn.ReLU: _unary("relu"),
    nn.Sigmoid: _unary("sigmoid"),
    nn.MaxPool2d: _pool("max"),
    nn.AvgPool2d: _pool("average"),
    Grow: lambda output, arguments, module: program.Grow(output, arguments[0], module.size),
    ResizeLike: lambda output, arguments, _: program.Resize(output, *arguments),
}


def _known() -> set[str]:
    return {kind.__name__ for kind in _MODULES} | {*_UNARY, *_BINARY, "mean over height and width"}


def _told(graph_module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return str(graph_module.get_submodule(str(node.target)))
    return f"'{getattr(node.target, '__name__', node.target)}'"


def _side(value: object) -> int | None:
    """A number that holds for both sides; None where they differ or it is a word."""
    sides = set(value) if isinstance(value, tuple) else {value}
    side = sides.pop()
    return side if isinstance(side, int) and not sides else None


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().numpy()
