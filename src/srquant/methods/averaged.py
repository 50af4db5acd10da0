"""Trained bounds that start at percentiles averaged over batches, on the integer grid or that of ODM's paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from srquant.methods.passing import PassingBounds
from srquant.methods.processes import joined
from srquant.quantizers.bounds import percentiles
from srquant.quantizers.kernels import SMALLEST_RANGE
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.straight_through import Gradient, GridKind, pass_gradient, round_straight_through


class AveragedBounds(PassingBounds):
    """Trained bounds that start at percentiles averaged over batches.

    Where several tensors share one quantiser (the parts of a concatenation), the percentiles of each are averaged.

    Attributes:
        batches: int64 [], averaged so far, each tensor's by itself.
        measures: whether batches are averaged now.
    """

    batches: Tensor

    def __init__(self, bits: int, *, percentile: float, grid: GridKind, gradient: Gradient) -> None:
        super().__init__(bits, percentile=percentile, grid=grid, gradient=gradient)
        self.register_buffer("batches", torch.tensor(0))
        self.measures = False

    def bounds_for(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `BoundsQuantizer.bounds_for`."""
        if self.measures:
            self._average(values)
        return super().bounds_for(values)

    def looks(self) -> bool:
        """See `BoundsQuantizer.looks`."""
        return super().looks() or self.measures

    def round(self, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """See `BoundsQuantizer.round`; on the official grid both bounds are levels."""
        if self.grid_kind == "integer":
            return super().round(values, lower, upper)
        wide = values.float()
        clipped = torch.maximum(torch.minimum(wide, upper), lower)
        step = (upper - lower).clamp(min=SMALLEST_RANGE) / (2**self.bits - 1)
        rounded = round_straight_through((clipped - lower) / step) * step + lower
        if self.gradient == "indicator":
            rounded = pass_gradient(clipped, rounded.detach())
        return rounded.to(values.dtype)

    @torch.no_grad()
    def _average(self, values: Tensor) -> None:
        assert self.percentile is not None
        lower, upper = percentiles(joined(values), self.percentile)
        upper = torch.maximum(upper, lower + SMALLEST_RANGE * (1 + lower.abs()))
        self.batches += 1
        for bound, new in ((self.lower, lower), (self.upper, upper)):
            bound.copy_(torch.where(self.batches == 1, new, bound + (new - bound) / self.batches))
        self.initialised.fill_(True)


@contextmanager
def averaging(network: QuantizedNetwork) -> Iterator[None]:
    """Quantisers with averaged bounds average what they see inside the block."""
    found = [q for q in network.activation_quantizers().values() if isinstance(q, AveragedBounds)]
    try:
        for quantizer in found:
            quantizer.measures = True
        yield
    finally:
        for quantizer in found:
            quantizer.measures = False
