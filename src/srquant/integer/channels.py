"""How offsets of channels are lowered: factors as a convolution, windows as limits of codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from srquant.integer import graph as ops
from srquant.quantizers.grid import Grid

Limits = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""The lowest and the highest code of each channel, uint8 [C]."""
_UNIT = 64
"""The weight code that stands for 1."""


def scaling(output: str, source: str, factors: NDArray[np.float32]) -> ops.Convolution:
    """A requantisation that multiplies each channel by a factor, which every engine has a kernel for."""
    count = len(factors)
    weight, bias = np.full((count, 1, 1, 1), _UNIT, np.int8), np.zeros(count, np.int32)
    return ops.Convolution(output, source, weight, bias, factors / np.float32(_UNIT), 0, groups=count, relu=False)


def rectified(limits: Limits, grid: Grid) -> tuple[Limits, Grid]:
    """The limits and the carrier of rectified values: codes below zero are left out where no channel ends there."""
    lowest, highest = limits
    zero = np.uint8(grid.zero_point)
    if highest.min() < zero:
        return (np.maximum(lowest, zero), highest), grid
    return (np.maximum(lowest, zero) - zero, highest - zero), replace(grid, zero_point=0)
