from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from srquant.quantizers.packing import pack, unpack


@st.composite
def packable(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(2, 8))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    values = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return draw(arrays.arrays(np.int8, shape, elements=values)), bits


@given(packable())
def test_packing_round_trips(given_codes: tuple[np.ndarray, int]) -> None:
    codes, bits = given_codes
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (math.ceil(codes.size * bits / 8),)
    found = unpack(packed, bits, codes.shape)
    assert found.dtype == np.int8
    assert found.shape == codes.shape
    assert np.array_equal(found, codes)


@given(packable(), st.sampled_from([-1, 1, 5]))
def test_a_wrong_byte_count_is_refused(given_codes: tuple[np.ndarray, int], surplus: int) -> None:
    codes, bits = given_codes
    packed = pack(codes, bits)
    wrong = packed[:-1] if surplus < 0 else np.concatenate([packed, np.zeros(surplus, np.uint8)])
    if wrong.size == packed.size:  # nothing to take away
        return
    with pytest.raises(ValueError, match=f"{wrong.size} bytes do not hold {codes.size} codes of {bits} bits"):
        unpack(wrong, bits, codes.shape)


@pytest.mark.parametrize(("code", "bits"), [(2, 2), (-3, 2), (8, 4), (-9, 4), (64, 7)])
def test_a_code_beyond_its_bits_is_refused(code: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"do not fit into {bits} bits"):
        pack(np.array([0, code], np.int8), bits)


def test_the_layout_is_little_end_first() -> None:
    assert pack(np.array([-2, -1, 0, 1], np.int8), 2).tolist() == [0b11_10_01_00]
    assert pack(np.array([-4, 3, 3], np.int8), 3).tolist() == [0b11_111_000, 0b1]
    assert pack(np.array([-128, 127], np.int8), 8).tolist() == [0, 255]
