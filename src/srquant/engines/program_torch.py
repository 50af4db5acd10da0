"""Float programs on PyTorch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from srquant.integer import program
from srquant.integer.program import Step

_Values = dict[str, Tensor]


def run_program(steps: tuple[Step, ...], values: Tensor) -> Tensor:
    """The result of a program: float32 [N, C, H, W] to that of its last step."""
    held = {program.INPUT: values}
    for step in steps:
        held[step.output] = _KERNELS[type(step)](step, held)
    return held[steps[-1].output]


def _convolution(step: program.Convolution, held: _Values) -> Tensor:
    weight, bias = torch.from_numpy(step.weight), torch.from_numpy(step.bias)
    return functional.conv2d(held[step.input], weight, bias, step.stride, step.padding, groups=step.groups)


def _unary(step: program.Unary, held: _Values) -> Tensor:
    return getattr(torch, step.function)(held[step.input])


def _pool(step: program.Pool, held: _Values) -> Tensor:
    pool = functional.max_pool2d if step.kind == "max" else functional.avg_pool2d
    return pool(held[step.input], step.size, step.stride)


def _mean(step: program.Mean, held: _Values) -> Tensor:
    return held[step.input].mean((2, 3), keepdim=True)


def _grow(step: program.Grow, held: _Values) -> Tensor:
    values = held[step.input]
    bottom, right = (max(step.size - length, 0) for length in values.shape[2:])
    return functional.pad(values, [0, right, 0, bottom], mode="replicate") if bottom or right else values


def _resize(step: program.Resize, held: _Values) -> Tensor:
    size = list(held[step.like].shape[2:])
    return functional.interpolate(held[step.input], size, mode="bilinear", align_corners=False)


def _binary(step: program.Binary, held: _Values) -> Tensor:
    right = held[step.right] if isinstance(step.right, str) else step.right
    return _OPERATORS[step.kind](held[step.left], right)


def _maximum(left: Tensor, right: Tensor | float) -> Tensor:
    return torch.clamp(left, min=right)


_OPERATORS: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "maximum": _maximum,
}

_KERNELS: dict[type[Step], Callable[[Any, _Values], Tensor]] = {
    program.Convolution: _convolution,
    program.Unary: _unary,
    program.Pool: _pool,
    program.Mean: _mean,
    program.Grow: _grow,
    program.Resize: _resize,
    program.Binary: _binary,
}
