"""The deployed form of a gated quantiser: bounds that a small gate scales picture by picture (DDTB, ECCV 2022).

The gate sees the channel means of its tensor. Simulation, reference and torch engine compute both in float64, so that
they choose the same grid from the same tensor; training and exported files compute them in float32, where a value on
the edge between two levels of the gate may go the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srquant.errors import UserError
from srquant.quantizers.grid import SMALLEST_RANGE, Grid
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.straight_through import integer_grid

MOST_GATED_BITS = 7
_GATE_LEVELS = 3
"""Steps of the gate's own 2-bit roundings."""


@dataclass(frozen=True, eq=False)
class GateWeights:
    """A gate: `2 * sigmoid(second @ round(relu(first @ round(means) * scale + shift)))`.

    Attributes:
        first: float32 [F, C].
        scale: float32 [F], the normalisation.
        shift: float32 [F].
        second: float32 [2, F]; row 0 gives the upper bound's factor, row 1 the lower one's.
    """

    first: NDArray[np.float32]
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    second: NDArray[np.float32]

    def factors(self, means: NDArray[np.float64]) -> tuple[float, float]:
        """The factors of the upper and the lower bound, in 0..2, from channel means [C]."""
        hidden = self.first.astype(np.float64) @ _rounded(means)
        hidden = np.maximum(hidden * self.scale + self.shift, 0)
        logits = self.second.astype(np.float64) @ _rounded(hidden)
        upper, lower = 2 / (1 + np.exp(-logits))
        return float(upper), float(lower)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded to 2 bit between their own ends, on DDTB's grid; a constant vector stays within an epsilon."""
    lower = values.min()
    width = max(values.max() - lower, SMALLEST_RANGE * (1 + abs(lower)))
    steps = _GATE_LEVELS / width
    zero_point = np.rint(steps * lower) + 2
    return (np.rint(steps * values - zero_point) + zero_point) / steps


@dataclass(frozen=True, eq=False)
class PictureGrid:
    """A grid for every picture: the bounds times the factors of a gate.

    Attributes:
        lower: the trained bounds.
        upper: of them.
        bits: of the codes.
        gate: gives the factors.
    """

    lower: float
    upper: float
    bits: int
    gate: GateWeights

    def nominal(self) -> Grid:
        """The grid where both factors are 1; the bias of a convolution that reads this tensor is rounded to it."""
        return _grid(self.lower, self.upper, self.bits)

    def of(self, means: NDArray[np.float64]) -> Grid:
        """The grid of a picture whose channel means [C] are given."""
        upper, lower = self.gate.factors(means)
        return _grid(self.lower * lower, self.upper * upper, self.bits)


def _grid(lower: float, upper: float, bits: int) -> Grid:
    """The integer grid between two float32 bounds, as training computes it."""
    scale, zero_point = integer_grid(torch.tensor([lower]), torch.tensor([upper]), bits)
    return Grid(float(scale), int(zero_point), 2**bits - 1)


class GatedQuantizer(ActivationQuantizer):
    """Rounds a tensor to the grid of its picture.

    Raises:
        UserError: more than 7 bits, whose multiples of the scale would not fit int8.
    """

    def __init__(self, picture_grid: PictureGrid) -> None:
        if picture_grid.bits > MOST_GATED_BITS:
            raise UserError(f"a gate on a tensor of {picture_grid.bits} bit: allowed are at most {MOST_GATED_BITS}")
        super().__init__(picture_grid.bits, picture_grid.nominal(), low_bit=True)
        self.fixed = False
        self.picture_grid = picture_grid

    def forward(self, values: Tensor) -> Tensor:
        """Float32 [N,C,H,W], each sample rounded to its own grid."""
        means = values.double().mean((2, 3)).cpu().numpy()
        grids = [self.picture_grid.of(one) for one in means]
        scale = torch.tensor([grid.scale for grid in grids], device=values.device).view(-1, 1, 1, 1)
        zero = torch.tensor([float(grid.zero_point) for grid in grids], device=values.device).view(-1, 1, 1, 1)
        codes = (torch.round(values / scale) + zero).clamp(0, 2**self.bits - 1)
        return (codes - zero) * scale

    def deployed(self) -> GatedQuantizer:
        """A copy."""
        return GatedQuantizer(self.picture_grid)
