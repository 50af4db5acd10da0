"""Range estimators: what interval of an activation's values its grid spans.

Each sees the values twice, one picture at a time: first their extremes, then a histogram between them. Memory
is bounded by the histogram, and the same values in the same order give the same range.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from srquant.config import RangeMethod
from srquant.errors import NotFiniteError, UserError, unknown

_BINS = 4096
_LARGEST = float(np.finfo(np.float32).max)

Range = tuple[float, float]
"""Lower and upper end of the interval that a grid is made for."""


def check_ranges(ranges: Mapping[str, Range], free: Collection[str], known: Collection[str]) -> None:
    """Refuse ranges that do not fit the tensors of a network.

    Args:
        ranges: lower and upper end by tensor.
        free: the tensors that need one.
        known: all tensors, those with a fixed grid too.

    Raises:
        UserError: the first tensor that is unknown, fixed or missing, or whose range is no interval.
    """
    for name, (lower, upper) in ranges.items():
        if name not in known:
            raise unknown("tensor", name, known)
        if name not in free:
            raise UserError(f"the grid of '{name}' is fixed: it has no range to choose")
        if not -_LARGEST <= lower <= upper <= _LARGEST:
            raise UserError(f"the range of '{name}' is {lower}..{upper}; allowed: finite as float32, lower end first")
    missing = [name for name in free if name not in ranges]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"the range of '{missing[0]}'{more} is missing")


class RangeObserver:
    """Collects the extremes of a tensor, then a histogram of its values."""

    def __init__(self) -> None:
        self.phase: Literal["extremes", "histogram"] = "extremes"
        self.lower = 0.0
        self.upper = 0.0
        self.counts = np.zeros(_BINS, dtype=np.int64)

    def see(self, values: Tensor) -> None:
        """Take in one tensor of any shape.

        Raises:
            NotFiniteError: it holds NaN or infinite values (the network diverges on the calibration pictures).
        """
        if self.phase == "extremes":
            lower, upper = map(float, torch.aminmax(values.detach()))
            if not (np.isfinite(lower) and np.isfinite(upper)):
                raise NotFiniteError(f"the activation range {lower}..{upper} is not finite: is the network damaged?")
            self.lower = min(self.lower, lower)
            self.upper = max(self.upper, upper)
        else:
            counts = torch.histc(values.detach(), bins=_BINS, min=self.lower, max=self.upper)
            self.counts += counts.numpy().astype(np.int64)

    def range(self, method: RangeMethod, bits: int, percentile: float) -> Range:
        """The interval to represent, by min-max, by percentile or by least squared error."""
        if method == "minmax" or self.lower == self.upper:
            return self.lower, self.upper
        if method == "percentile":
            return self._percentile(percentile)
        return self._least_squared_error(bits)

    def _percentile(self, percentile: float) -> Range:
        """The interval that leaves (100 - percentile)/2 per cent of the values outside on either side.

        A side that ends at zero (after a ReLU) is not cut.
        """
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (1 - percentile / 100) / 2
        edges = np.linspace(self.lower, self.upper, _BINS + 1)
        lower = edges[np.searchsorted(share, tail, side="right")] if self.lower < 0 else self.lower
        upper = edges[np.searchsorted(share, 1 - tail, side="left") + 1] if self.upper > 0 else self.upper
        return float(lower), float(upper)

    def _least_squared_error(self, bits: int) -> Range:
        """Shrink one end at a time, as long as the expected squared error of rounding and clipping falls."""
        centres = self.lower + (np.arange(_BINS) + 0.5) * (self.upper - self.lower) / _BINS
        occupied = self.counts > 0
        values, weights = centres[occupied], self.counts[occupied].astype(np.float64)

        def error(lower: float, upper: float) -> float:
            scale = (upper - lower) / (2**bits - 1)
            rounded = np.rint((np.clip(values, lower, upper) - lower) / scale) * scale + lower
            return float((np.square(rounded - values) * weights).sum())

        fractions = np.linspace(0.02, 1.0, 99)
        lower, upper = self.lower, self.upper
        for _ in range(3):
            if upper > 0:
                upper = min((self.upper * f for f in fractions), key=lambda end: error(lower, end))
            if lower < 0:
                lower = min((self.lower * f for f in fractions), key=lambda end: error(end, upper))
        return float(lower), float(upper)
