from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from srquant.errors import UserError
from srquant.imaging.colour import luma, seen_by, to_rgb, to_ycbcr

GREYS = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)


def cube(red: int) -> np.ndarray:
    """All colours of one red, uint8 [256,256,3]."""
    green, blue = np.mgrid[0:256, 0:256].astype(np.uint8)
    return np.stack([np.full_like(green, red), green, blue], axis=-1)


@pytest.mark.parametrize("red", range(0, 256, 15))
def test_every_colour_comes_back_within_one_level(red: int) -> None:
    rgb = cube(red)
    back = to_rgb(to_ycbcr(rgb)).astype(int)
    assert np.abs(back - rgb).max() <= 1


@pytest.mark.parametrize("red", [0, 1, 64, 128, 200, 255])
def test_values_are_those_of_the_definition_rounded_half_up(red: int) -> None:
    rgb = cube(red)
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    exact = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1)
    found = to_ycbcr(rgb)
    wanted = np.floor(exact.clip(0, 255) + 0.5)
    tie = np.abs(exact % 1 - 0.5) < 2e-2  # 65536ths may fall on the other side of a half
    assert (found == wanted)[~tie].all()
    assert np.abs(found - wanted).max() <= 1
    assert np.array_equal(luma(rgb), found[..., :1])
    pillow = np.asarray(Image.fromarray(rgb).convert("YCbCr")).astype(int)
    assert np.abs(pillow - found).max() <= 1


def test_grey_has_no_colour_and_keeps_its_value() -> None:
    assert np.array_equal(luma(GREYS), GREYS[..., :1])
    assert np.array_equal(to_ycbcr(GREYS)[..., 1:], np.full((1, 256, 2), 128))
    assert np.array_equal(to_rgb(to_ycbcr(GREYS)), GREYS)


def test_the_way_back_clips_what_is_no_colour() -> None:
    assert to_rgb(np.array([[[255, 128, 255], [0, 0, 0]]], np.uint8)).tolist() == [[[255, 164, 255], [0, 135, 0]]]


@given(st.integers(1, 700), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_strips_do_not_show(height: int, width: int) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = np.concatenate([to_ycbcr(rgb[row : row + 1]) for row in range(height)])
    assert np.array_equal(to_ycbcr(rgb), rows)


def test_a_network_sees_the_picture_or_its_luma() -> None:
    rgb = cube(77)
    assert seen_by(3, rgb) is rgb
    assert np.array_equal(seen_by(1, rgb), luma(rgb))
    with pytest.raises(UserError, match=r"takes pictures of 4 channels; known are 3 \(RGB\) and 1 \(luma\)"):
        seen_by(4, rgb)
