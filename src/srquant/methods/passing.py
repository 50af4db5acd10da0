"""Quantisers that can step aside: while `flags["passes"]` is set, the network computes as the float network does."""

from __future__ import annotations

import torch
from torch import Tensor

from srquant.methods.flags import Flags
from srquant.methods.processes import joined
from srquant.quantizers.bounds import BoundsQuantizer, percentiles
from srquant.quantizers.kernels import SMALLEST_RANGE
from srquant.quantizers.straight_through import Gradient, GridKind
from srquant.quantizers.weights import WeightCodes, WeightQuantizer

_NO_ROUNDING = 2.0**-40
"""A weight step so fine that a bias rounded to it keeps all digits of float32."""


class PassingBounds(BoundsQuantizer):
    """A BoundsQuantizer that can pass its input on, and whose first range is that of all processes' batches.

    Attributes:
        flags: "passes": round nothing.
    """

    def __init__(
        self,
        bits: int,
        *,
        percentile: float | None = 99.0,
        start: float = 10.0,
        grid: GridKind = "integer",
        gradient: Gradient = "official",
    ) -> None:
        super().__init__(bits, percentile=percentile, start=start, grid=grid, gradient=gradient)
        self.flags = Flags(passes=False)

    def bounds_for(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `BoundsQuantizer.bounds_for`."""
        return None if self.flags["passes"] else super().bounds_for(values)

    @torch.no_grad()
    def set_from(self, values: Tensor) -> None:
        """See `BoundsQuantizer.set_from`; the two bounds are never equal."""
        assert self.percentile is not None
        lower, upper = percentiles(joined(values), self.percentile)
        self.lower.copy_(lower)
        self.upper.copy_(torch.maximum(upper, lower + SMALLEST_RANGE * (1 + lower.abs())))
        self.initialised.fill_(True)


class PassingWeights(WeightQuantizer):
    """Any weight quantiser, or the float weights while `flags["passes"]` is set."""

    def __init__(self, inner: WeightQuantizer) -> None:
        super().__init__(inner.bits)
        self.inner = inner
        self.flags = Flags(passes=False)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightQuantizer.forward`."""
        if self.flags["passes"]:
            return weight, weight.new_full((1,), _NO_ROUNDING)
        return self.inner(weight)

    def codes(self, weight: Tensor) -> WeightCodes:
        """See `WeightQuantizer.codes`."""
        return self.inner.codes(weight)
