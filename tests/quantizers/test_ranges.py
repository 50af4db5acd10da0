from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srquant.errors import UserError
from srquant.quantizers.grid import grid_from_range
from srquant.quantizers.ranges import RangeObserver


def observed(chunks: list[torch.Tensor]) -> RangeObserver:
    observer = RangeObserver()
    for phase in ("extremes", "histogram"):
        observer.phase = phase
        for chunk in chunks:
            observer.see(chunk)
    return observer


def uniform(lower: float, upper: float, count: int = 200_000) -> torch.Tensor:
    return torch.linspace(lower, upper, count)


def test_minmax_is_the_extremes_and_zero() -> None:
    assert observed([torch.tensor([3.0, -2.0]), torch.tensor([[7.5]])]).range("minmax", 8, 99.0) == (-2.0, 7.5)
    assert observed([torch.tensor([3.0, 4.0])]).range("minmax", 8, 99.0) == (0.0, 4.0)


@pytest.mark.parametrize(("percentile", "tail"), [(99.0, 0.5), (90.0, 5.0), (60.0, 20.0)])
def test_percentile_leaves_half_of_the_rest_on_either_side(percentile: float, tail: float) -> None:
    lower, upper = observed([uniform(-100, 100)]).range("percentile", 8, percentile)
    bin_width = 200 / 4096
    assert lower == pytest.approx(-100 + 2 * tail, abs=2 * bin_width)
    assert upper == pytest.approx(100 - 2 * tail, abs=2 * bin_width)


def test_percentile_does_not_cut_the_side_that_ends_at_zero() -> None:
    lower, upper = observed([uniform(0, 10)]).range("percentile", 8, 80.0)
    assert lower == 0.0
    assert upper == pytest.approx(9.0, abs=0.01)
    lower, upper = observed([uniform(-10, 0)]).range("percentile", 8, 80.0)
    assert upper == 0.0
    assert lower == pytest.approx(-9.0, abs=0.01)


def test_a_percentile_of_100_keeps_every_value() -> None:
    lower, upper = observed([uniform(-3, 5), torch.tensor([11.0])]).range("percentile", 8, 100.0)
    assert (lower, upper) == (-3.0, 11.0)


def test_percentile_and_mse_cut_an_outlier_that_minmax_keeps() -> None:
    observer = observed([uniform(-1, 1), torch.tensor([40.0])])
    assert observer.range("minmax", 4, 99.9) == (-1.0, 40.0)
    assert observer.range("percentile", 4, 99.9)[1] < 1.1
    assert observer.range("mse", 4, 99.9)[1] < 3


@pytest.mark.parametrize("bits", [2, 4])
def test_mse_rounds_a_normal_distribution_better_than_minmax(bits: int) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    observer = observed([values])

    def error(ends: tuple[float, float]) -> float:
        lower, upper = ends
        step = (upper - lower) / (2**bits - 1)
        rounded = torch.round((values.clamp(lower, upper) - lower) / step) * step + lower
        return float((rounded - values).square().mean())

    found = observer.range("mse", bits, 100.0)
    assert error(found) < 0.6 * error(observer.range("minmax", bits, 100.0))
    # the best symmetric uniform quantiser of a normal distribution (Max 1960) spans about +-1.49 and +-2.51
    best = {2: 1.494, 4: 2.513}[bits]
    assert error(found) < 1.1 * error((-best, best))


def test_mse_of_few_values_that_fit_the_grid_keeps_them() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(100)
    lower, upper = observed([values]).range("mse", 2, 100.0)
    assert lower == 0.0
    assert upper == pytest.approx(3.0, rel=0.03)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.integers(1, 7))
def test_the_cut_into_chunks_does_not_matter(values: list[float], size: int) -> None:
    everything = torch.tensor(values)
    whole, parts = observed([everything]), observed(list(everything.split(size)))
    assert (whole.lower, whole.upper) == (parts.lower, parts.upper)
    assert whole.lower == min(0.0, float(everything.min()))
    assert np.array_equal(whole.counts, parts.counts)
    for method in ("minmax", "percentile", "mse"):
        found = whole.range(method, 4, 99.0)
        assert found == parts.range(method, 4, 99.0)
        assert whole.lower <= found[0] <= 0 <= found[1] <= whole.upper


def test_memory_is_bounded_by_the_histogram() -> None:
    observer = RangeObserver()

    def held() -> int:
        return sum(v.nbytes for v in vars(observer).values() if isinstance(v, np.ndarray))

    before = held()
    for phase in ("extremes", "histogram"):
        observer.phase = phase
        for seed in range(5):
            observer.see(torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(seed)))
    assert held() == before < 100_000
    others = [v for v in vars(observer).values() if not isinstance(v, np.ndarray)]
    assert all(isinstance(v, str | int | float) for v in others), "it must not keep tensors"
    assert observer.counts.sum() == 5 * 8 * 64 * 64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_values_that_are_not_finite_end_in_a_user_error(bad: float, method: str) -> None:
    def calibrate() -> None:
        observer = observed([torch.tensor([1.0, bad]), torch.tensor([2.0])])
        grid_from_range(*observer.range(method, 8, 99.0), 8)  # pyright: ignore[reportArgumentType]

    with pytest.raises(UserError, match="not finite"):
        calibrate()


def test_a_tensor_of_zeros_has_an_empty_range() -> None:
    observer = observed([torch.zeros(4, 4)])
    for method in ("minmax", "percentile", "mse"):
        assert observer.range(method, 8, 99.0) == (0.0, 0.0)
