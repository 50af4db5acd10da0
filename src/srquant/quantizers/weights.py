"""Weight quantisers of training: a range per forward pass, codes that deployment packs.

A weight is `multiple * step` with whole multiples; a grid of b bits holds at most 2^b of them. Deployment
multiplies the multiples by `expansion`, the largest whole number that keeps them within int8, so that the bias,
whose grid is input scale times step over expansion, stays fine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from srquant.quantizers.bounds import percentiles
from srquant.quantizers.straight_through import GridKind, fake_quantize_between, integer_grid, pass_gradient

LARGEST_INT8 = 127


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """A weight tensor as whole numbers.

    Attributes:
        multiples: int8 [O,I,kH,kW]; the real weight is `multiples * steps`.
        zero_points: int32 [O]; `(multiples - zero_points) / spacing` lies within -2^(bits-1)..2^(bits-1)-1 and is what
            is packed.
        steps: float32 [O], above 0.
        expansion: what deployment multiplies the multiples by (and divides the steps by).
        spacing: between neighbouring multiples: 1, or 2 where all of them are odd.
    """

    multiples: Tensor
    zero_points: Tensor
    steps: Tensor
    expansion: int
    spacing: int = 1

    def scaled(self, factors: Tensor) -> WeightCodes:
        """The codes of `weight * factors`, factors float [O], as batch normalisation needs it; no zero factor."""
        negative = (factors < 0).to(self.multiples.device)
        multiples = torch.where(negative.view(-1, 1, 1, 1), -self.multiples, self.multiples)
        zero_points = torch.where(negative, self.spacing - self.zero_points, self.zero_points).int()
        return replace(self, multiples=multiples, zero_points=zero_points, steps=(self.steps * factors.abs()).float())


class WeightQuantizer(nn.Module):
    """Base: how the weights of one convolution are rounded in training."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [O,I,kH,kW] -> the same rounded (straight-through), and the detached step over expansion [1] or [O].

        The second is what the bias grid needs.
        """
        raise NotImplementedError

    def codes(self, weight: Tensor) -> WeightCodes:
        """What is deployed; `multiples * steps` equals the rounded weight."""
        raise NotImplementedError


class AsymmetricWeights(WeightQuantizer):
    """One range for the whole tensor, from its percentiles or its ends, recomputed in every forward pass.

    DDTB quantises weights so: the 99th and 1st percentile (EDSR, SRResNet) or maximum and minimum (RDN). The
    gradient is 1 inside the range and 0 outside.
    """

    def __init__(self, bits: int, *, percentile: float = 99.0, grid: GridKind = "integer") -> None:
        super().__init__(bits)
        self.percentile = percentile
        self.grid: GridKind = grid

    def range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper end, float32 [1]."""
        if self.percentile == 100:
            lower, upper = weight.detach().aminmax()
            return lower.reshape(1), upper.reshape(1)
        return percentiles(weight, self.percentile)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightQuantizer.forward`."""
        lower, upper = self.range(weight)
        step, zero_point = integer_grid(lower, upper, self.bits)
        largest = torch.maximum(zero_point, 2**self.bits - 1 - zero_point)
        values = weight.detach() if self.percentile == 100 else weight
        rounded = fake_quantize_between(values, lower, upper, self.bits, grid=self.grid, gradient="indicator")
        if self.percentile == 100:  # nothing is clipped, the two extreme weights neither
            rounded = pass_gradient(weight, rounded)
        return rounded, step / torch.floor(LARGEST_INT8 / largest)

    def codes(self, weight: Tensor) -> WeightCodes:
        """See `WeightQuantizer.codes`."""
        step, zero_point = integer_grid(*self.range(weight), self.bits)
        top = 2**self.bits - 1
        codes = (torch.round(weight.detach() / step) + zero_point).clamp(0, top)
        multiples = (codes - zero_point).to(torch.int8)
        zero = 2 ** (self.bits - 1) - int(zero_point)
        expansion = LARGEST_INT8 // max(int(zero_point), top - int(zero_point))
        count = len(weight)
        return WeightCodes(
            multiples, torch.full((count,), zero, dtype=torch.int32), step.expand(count).clone(), expansion
        )


class SymmetricWeights(WeightQuantizer):
    """`round(w*q/m)*m/q` with `q = 2^(bits-1) - 1` and `m` the largest magnitude, of the tensor or per output channel.

    PAMS quantises weights so (per tensor). The gradient passes unchanged.
    """

    def __init__(self, bits: int, *, per_channel: bool = False) -> None:
        super().__init__(bits)
        self.per_channel = per_channel

    def steps(self, weight: Tensor) -> Tensor:
        """Float32 [1] or [O]."""
        magnitude = weight.detach().abs()
        largest = magnitude.flatten(1).amax(1) if self.per_channel else magnitude.amax().reshape(1)
        return (largest + 1e-8) / self._top

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightQuantizer.forward`."""
        steps = self.steps(weight)
        wide = steps.view(-1, 1, 1, 1)
        rounded = pass_gradient(weight, torch.round(weight.detach() / wide) * wide)
        return rounded, steps / (LARGEST_INT8 // self._top)

    def codes(self, weight: Tensor) -> WeightCodes:
        """See `WeightQuantizer.codes`."""
        steps = self.steps(weight).expand(len(weight)).clone()
        multiples = torch.round(weight.detach() / steps.view(-1, 1, 1, 1)).to(torch.int8)
        zero = torch.zeros(len(weight), dtype=torch.int32)
        return WeightCodes(multiples, zero, steps, LARGEST_INT8 // self._top)
