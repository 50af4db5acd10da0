"""The integer grids: which real numbers a tensor may hold, and the codes they are stored as.

The words are those of the ONNX operators QuantizeLinear and DequantizeLinear: a real value is
`(code - zero_point) * scale`. Activations are unsigned, `0 <= code <= maximum_code <= 255`; weights are
signed and symmetric per output channel. Everything is float32, because that is what the engines compute.

Low-bit weights are deployed *expanded*: a 2-bit code of -1, 0, 1 becomes -127, 0, 127 with a step 127 times
finer. The values are the same; the int32 bias, whose grid is input scale times weight step, becomes fine enough
not to destroy the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srquant.errors import NotFiniteError

SMALLEST_RANGE = 1e-6
"""No grid spans less."""
LARGEST_BIAS_CODE = 2**22
"""Bias codes stay below this, so that a float32 bias names its code without doubt."""


@dataclass(frozen=True)
class Grid:
    """An unsigned per-tensor grid; `maximum_code` is 2^bits - 1."""

    scale: float
    zero_point: int
    maximum_code: int

    @property
    def bits(self) -> int:
        """The number of bits that hold a code."""
        return self.maximum_code.bit_length()

    @property
    def lower(self) -> float:
        """The smallest real value on the grid."""
        return -self.zero_point * self.scale

    @property
    def upper(self) -> float:
        """The largest real value on the grid."""
        return (self.maximum_code - self.zero_point) * self.scale


IMAGE_GRID = Grid(scale=1.0, zero_point=0, maximum_code=255)
"""Pictures come in and go out as their own 8-bit values: never calibrated, so white stays white."""


def grid_from_range(lower: float, upper: float, bits: int, *, exact: bool = False) -> Grid:
    """The grid of `bits` bits that spans a range, widened to hold zero.

    Args:
        lower: smallest value to represent.
        upper: largest value to represent.
        bits: 2 to 8.
        exact: use a power-of-two scale and an even zero point, which makes every engine agree bit for bit.

    Raises:
        NotFiniteError: the range is not finite (the network diverges on the calibration pictures).
    """
    if not (np.isfinite(lower) and np.isfinite(upper)):
        raise NotFiniteError(f"the activation range {lower}..{upper} is not finite")
    lower, upper = min(lower, 0.0), max(upper, 0.0)
    maximum_code = 2**bits - 1
    width = max(upper - lower, SMALLEST_RANGE)
    scale = _power_of_two(width / maximum_code) if exact else float(np.float32(width / maximum_code))
    zero_point = round(-lower / scale)
    if exact:
        zero_point = 2 * round(-lower / scale / 2)
    return Grid(scale, min(max(zero_point, 0), maximum_code - exact), maximum_code)


def fake_quantize(values: Tensor, grid: Grid) -> Tensor:
    """Round `values` (any shape, float32) to the grid and return them as reals, saturating at its ends."""
    codes = torch.round(values / grid.scale) + grid.zero_point
    return (codes.clamp(0, grid.maximum_code) - grid.zero_point) * grid.scale


def largest_weight_code(bits: int) -> int:
    """The largest code of a symmetric signed grid: 127 at 8 bit, 1 at 2 bit (three levels)."""
    return 2 ** (bits - 1) - 1


def expansion(bits: int) -> int:
    """How many times a weight code is multiplied for deployment, to fill the int8 range."""
    return 127 // largest_weight_code(bits)


def weight_steps(weight: Tensor, bias: Tensor | None, bits: int, input_scale: float, *, exact: bool = False) -> Tensor:
    """The deployed step of each output channel, float32 [O].

    At 8 bit the step spans the channel's largest weight; below, it minimises the squared rounding error over 64
    candidates. A channel whose bias would need a code beyond 2^22 gets a coarser step.

    Args:
        weight: [O, I, kH, kW].
        bias: [O] or None.
        bits: 2 to 8.
        input_scale: scale of the tensor that the convolution reads.
        exact: power-of-two steps.
    """
    flat = weight.detach().double().flatten(1)
    largest = largest_weight_code(bits)
    span = flat.abs().amax(1).clamp(min=1e-12)
    fractions = torch.ones(1) if bits == 8 else torch.linspace(0.3, 1.0, 64)
    best_step, best_error = span / largest, torch.full_like(span, torch.inf)
    for fraction in fractions.double():
        step = span * fraction / largest
        if exact:
            step = torch.exp2(torch.ceil(torch.log2(step)))
        codes = torch.round(flat / step[:, None]).clamp(-largest, largest)
        error = (codes * step[:, None] - flat).square().sum(1)
        better = error < best_error
        best_step = torch.where(better, step, best_step)
        best_error = torch.where(better, error, best_error)
    step = best_step / expansion(bits)
    if bias is not None:
        least = bias.detach().double().abs() / (LARGEST_BIAS_CODE * input_scale)
        step = torch.maximum(step, least)
    if exact:
        step = torch.exp2(torch.ceil(torch.log2(step)))
    return step.float()


def weight_codes(weight: Tensor, steps: Tensor, bits: int) -> Tensor:
    """The unexpanded codes of a weight tensor, int8 [O, I, kH, kW] within +-(2^(bits-1) - 1)."""
    largest = largest_weight_code(bits)
    wide = (steps.double() * expansion(bits)).view(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight.detach().double() / wide).clamp(-largest, largest).to(torch.int8)


def bias_codes(bias: Tensor, steps: Tensor, input_scale: float) -> Tensor:
    """The int32 codes [O] of a bias on the accumulator's grid, input scale times weight step."""
    return torch.round(bias.detach().double() / (steps.double() * input_scale)).to(torch.int32)


def _power_of_two(value: float) -> float:
    """The smallest power of two that is not below `value`."""
    return float(2.0 ** np.ceil(np.log2(value)))
