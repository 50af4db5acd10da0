from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srquant.errors import UserError
from srquant.quantizers.grid import (
    IMAGE_GRID,
    Grid,
    bias_codes,
    expansion,
    fake_quantize,
    grid_from_range,
    largest_weight_code,
    weight_codes,
    weight_steps,
)

BITS = st.integers(2, 8)
ENDS = st.floats(-1e4, 1e4, allow_nan=False, width=32)
INSIDE = pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])


@given(BITS, ENDS, ENDS, st.integers(0, 1000))
def test_fake_quantize_is_that_of_torch(bits: int, one: float, other: float, seed: int) -> None:
    lower, upper = sorted((one, other))
    grid = grid_from_range(lower, upper, bits)
    width = max(grid.upper - grid.lower, 1e-3)
    values = torch.empty(257).uniform_(grid.lower - width, grid.upper + width, generator=_generator(seed))
    # torch multiplies by the inverse of the scale, srquant and ONNX divide: keep off the ties
    position = (values.double() / grid.scale) % 1
    values = values[(position - 0.5).abs() > 1e-3]
    expected = torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, 0, grid.maximum_code)
    assert torch.allclose(fake_quantize(values, grid), expected, rtol=1e-6, atol=0)


def test_fake_quantize_rounds_ties_to_even_before_the_zero_point_and_saturates() -> None:
    grid = Grid(scale=2.0, zero_point=3, maximum_code=15)
    values = torch.tensor([-100.0, -7.0, -5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0, 23.0, 24.0, 100.0])
    expected = [-6.0, -6.0, -4.0, -4.0, 0.0, 0.0, 0.0, 4.0, 4.0, 24.0, 24.0, 24.0]
    assert fake_quantize(values, grid).tolist() == expected


def test_image_grid_keeps_every_pixel_value() -> None:
    pixels = torch.arange(256).float()
    assert torch.equal(fake_quantize(pixels, IMAGE_GRID), pixels)
    assert fake_quantize(torch.tensor([-3.0, 255.4, 400.0]), IMAGE_GRID).tolist() == [0.0, 255.0, 255.0]
    assert (IMAGE_GRID.bits, IMAGE_GRID.lower, IMAGE_GRID.upper) == (8, 0.0, 255.0)


@given(ENDS, ENDS, BITS, st.booleans())
def test_a_grid_holds_zero_and_spans_its_range(one: float, other: float, bits: int, exact: bool) -> None:
    lower, upper = sorted((one, other))
    grid = grid_from_range(lower, upper, bits, exact=exact)
    assert grid.maximum_code == 2**bits - 1
    assert grid.bits == bits
    assert 0 <= grid.zero_point <= grid.maximum_code
    assert grid.scale > 0
    assert np.float32(grid.scale) == grid.scale, "the scale must be the float32 that is deployed"
    assert fake_quantize(torch.zeros(1), grid).item() == 0.0
    # the zero point is rounded to the grid, to an even code where exact: an end moves by that much at most
    slack = grid.scale * (1.0 if exact else 0.5) * (1 + 1e-5)
    assert grid.lower <= min(lower, 0.0) + slack
    assert grid.upper >= max(upper, 0.0) - slack
    codes = torch.round(torch.linspace(2 * lower - 1, 2 * upper + 1, 999) / grid.scale) + grid.zero_point
    used = torch.unique(fake_quantize((codes - grid.zero_point) * grid.scale, grid))
    assert len(used) <= 2**bits


@given(ENDS, ENDS, BITS)
def test_exact_grids_have_powers_of_two_and_even_zero_points(one: float, other: float, bits: int) -> None:
    lower, upper = sorted((one, other))
    exact = grid_from_range(lower, upper, bits, exact=True)
    assert math.frexp(exact.scale)[0] == 0.5
    assert exact.zero_point % 2 == 0
    plain = grid_from_range(lower, upper, bits)
    assert plain.scale * (1 - 1e-6) <= exact.scale < 2 * plain.scale * (1 + 1e-6)


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.nan), (-math.inf, 0.0), (0.0, math.inf)])
@pytest.mark.parametrize("exact", [False, True])
def test_a_range_that_is_not_finite_is_refused(ends: tuple[float, float], exact: bool) -> None:
    with pytest.raises(UserError, match="is not finite"):
        grid_from_range(*ends, 8, exact=exact)


def test_an_empty_range_has_a_grid() -> None:
    grid = grid_from_range(0.0, 0.0, 8)
    assert grid.scale > 0
    assert fake_quantize(torch.zeros(3), grid).tolist() == [0.0, 0.0, 0.0]


@INSIDE
def test_expanded_weight_codes_fill_int8(bits: int) -> None:
    largest = largest_weight_code(bits)
    assert largest == 2 ** (bits - 1) - 1
    assert 63 < largest * expansion(bits) <= 127
    assert largest * (expansion(bits) + 1) > 127


@INSIDE
@pytest.mark.parametrize("exact", [False, True])
def test_weight_codes_keep_to_their_bits(bits: int, exact: bool) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=_generator(bits)) * torch.logspace(-3, 2, 6)[:, None, None, None]
    steps = weight_steps(weight, torch.randn(6, generator=_generator(1)), bits, 0.37, exact=exact)
    codes = weight_codes(weight, steps, bits)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert codes.abs().max() <= largest_weight_code(bits)
    assert len(torch.unique(codes)) <= 2**bits
    assert all(len(torch.unique(channel)) > 1 for channel in codes), "a channel was rounded away"
    if exact:
        assert all(math.frexp(step)[0] == 0.5 for step in steps.tolist())
    deployed = codes.double() * steps.double()[:, None, None, None] * expansion(bits)
    error = (deployed - weight.double()).flatten(1).square().sum(1).sqrt()
    assert (error < 0.9 * weight.double().flatten(1).norm(dim=1)).all(), "all-zero weights would score 1"


def test_eight_bit_steps_span_the_largest_weight() -> None:
    weight = torch.tensor([[0.5, -1.27], [12.7, 0.0]])[:, :, None, None]
    steps = weight_steps(weight, None, 8, 1.0)
    assert torch.allclose(steps, torch.tensor([0.01, 0.1]))
    assert weight_codes(weight, steps, 8).flatten(1).tolist() == [[50, -127], [127, 0]]


@INSIDE
def test_low_bit_steps_are_no_worse_than_spanning_the_largest_weight(bits: int) -> None:
    weight = torch.randn(4, 8, 3, 3, generator=_generator(7))

    def error(steps: torch.Tensor) -> torch.Tensor:
        wide = steps.double()[:, None, None, None] * expansion(bits)
        return (weight_codes(weight, steps, bits) * wide - weight).square().sum((1, 2, 3))

    largest = largest_weight_code(bits) * expansion(bits)
    spanning = (weight.flatten(1).abs().amax(1) / largest).float()
    assert (error(weight_steps(weight, None, bits, 1.0)) <= error(spanning) + 1e-6).all()


@given(st.floats(1e-4, 1e4), BITS, st.booleans())
def test_bias_codes_are_exact_in_float32(size: float, bits: int, exact: bool) -> None:
    weight = torch.randn(4, 3, 1, 1, generator=_generator(3)) * 1e-3
    bias = torch.tensor([size, -size, 0.0, size / 3])
    scale = 2.0**-5
    steps = weight_steps(weight, bias, bits, scale, exact=exact)
    codes = bias_codes(bias, steps, scale)
    assert codes.dtype == torch.int32
    assert codes.abs().max() <= 2**22
    grid = steps.double() * scale
    assert ((codes * grid - bias.double()).abs() <= grid / 2 * (1 + 1e-9)).all()


def test_a_dead_channel_has_a_step_and_zero_codes() -> None:
    steps = weight_steps(torch.zeros(1, 2, 3, 3), torch.tensor([3.0]), 8, 1.0)
    assert torch.isfinite(steps).all()
    assert (steps > 0).all()
    assert not weight_codes(torch.zeros(1, 2, 3, 3), steps, 8).any()
    code = bias_codes(torch.tensor([3.0]), steps, 1.0)
    assert float(code * steps) == pytest.approx(3.0, rel=1e-5)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
