from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upscaling_engines import BoxEngine, NearestEngine, noise

from srquant.errors import UserError
from srquant.imaging import Picture
from srquant.upscaling import count_runs, upscale_picture
from srquant.upscaling.picture import bleed


def doubled(values: np.ndarray) -> np.ndarray:
    return values.repeat(2, axis=0).repeat(2, axis=1)


def test_colour_and_metadata_come_along() -> None:
    picture = Picture(noise(5, 7), icc=b"profile", exif=b"block")
    result = upscale_picture(NearestEngine(), picture)
    assert np.array_equal(result.rgb, doubled(picture.rgb))
    assert (result.icc, result.exif, result.grey, result.alpha) == (b"profile", b"block", False, None)


def test_grey_stays_grey_by_luma() -> None:
    picture = Picture(noise(5, 7, 1).repeat(3, axis=2), grey=True)
    result = upscale_picture(NearestEngine((20, 0, -10)), picture)
    assert result.grey
    shifted = np.clip(picture.rgb[..., :1].astype(int) + np.array([20, 0, -10]), 0, 255)
    luma = np.floor(shifted @ [299, 587, 114] / 1000 + 0.5).astype(np.uint8)
    assert np.array_equal(result.rgb, doubled(luma)[..., None].repeat(3, axis=2))


def test_alpha_is_enlarged_by_the_network_and_its_mean_taken() -> None:
    alpha = noise(6, 6, 1)[..., 0]
    result = upscale_picture(NearestEngine((4, 0, 1)), Picture(noise(6, 6), alpha))
    mean = np.floor(np.clip(alpha[..., None].astype(int) + np.array([4, 0, 1]), 0, 255).mean(axis=2) + 0.5)
    assert result.alpha is not None
    assert np.array_equal(result.alpha, doubled(mean))


def test_alpha_that_is_even_stays_exact() -> None:
    engine = NearestEngine((-5, -5, -5))  # a network that darkens white
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:, 6:] = 255
    picture = Picture(noise(8, 12), alpha)
    result = upscale_picture(engine, picture)
    assert result.alpha is not None
    assert np.array_equal(result.alpha[:, :10], np.zeros((16, 10)))
    assert np.array_equal(result.alpha[:, 14:], np.full((16, 10), 255))
    assert (result.alpha[:, 12:14] == 250).all()
    assert count_runs(engine, picture) == len(engine.shapes) == 2


def test_constant_alpha_needs_no_run() -> None:
    engine = NearestEngine((-5, -5, -5))
    picture = Picture(noise(4, 4), np.full((4, 4), 255, np.uint8))
    result = upscale_picture(engine, picture)
    assert result.alpha is not None
    assert np.array_equal(result.alpha, np.full((8, 8), 255))
    assert count_runs(engine, picture) == len(engine.shapes) == 1


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("tile", [1, 5, 16])
def test_the_picture_is_the_same_for_every_tile(tile: int, grey: bool) -> None:
    rgb = noise(19, 27, 1).repeat(3, axis=2) if grey else noise(19, 27)
    alpha = np.where(noise(19, 27, 1, seed=1)[..., 0] > 100, 200, 0).astype(np.uint8)
    picture = Picture(rgb, alpha, grey)
    whole = upscale_picture(BoxEngine(), picture, None)
    ticks: list[None] = []
    tiled = upscale_picture(BoxEngine(), picture, tile, lambda: ticks.append(None))
    assert np.array_equal(tiled.rgb, whole.rgb)
    assert tiled.alpha is not None
    assert whole.alpha is not None
    assert np.array_equal(tiled.alpha, whole.alpha)
    assert len(ticks) == count_runs(BoxEngine(), picture, tile)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_bleeding_leaves_what_is_visible(height: int, width: int, seed: int) -> None:
    rgb = noise(height, width, seed=seed)
    alpha = np.random.default_rng(seed).integers(0, 3, (height, width), dtype=np.uint8)
    before = rgb.copy()
    result = bleed(rgb, alpha)
    assert np.array_equal(rgb, before)
    assert np.array_equal(result[alpha > 0], rgb[alpha > 0])
    if (alpha > 0).any():
        assert result.min() >= rgb[alpha > 0].min()
        assert result.max() <= rgb[alpha > 0].max()


def test_bleeding_takes_the_nearest_colours_then_the_mean() -> None:
    rgb = np.zeros((1, 60, 3), np.uint8)
    rgb[:, 0], rgb[:, 59] = (200, 100, 0), (100, 50, 20)
    alpha = np.zeros((1, 60), np.uint8)
    alpha[:, 0] = alpha[:, 59] = 255
    result = bleed(rgb, alpha)
    assert (result[0, :17] == (200, 100, 0)).all()
    assert (result[0, 43:] == (100, 50, 20)).all()
    assert (result[0, 17:43] == (150, 75, 10)).all()


def test_no_dark_fringe() -> None:
    rgb = np.full((9, 9, 3), 0, np.uint8)
    rgb[2:7, 2:7] = 240
    alpha = (rgb[..., 0] > 0) * np.uint8(255)
    result = upscale_picture(NearestEngine(), Picture(rgb, alpha))
    assert (result.rgb == 240).all()


def test_networks_for_neither_rgb_nor_luma_are_refused() -> None:
    with pytest.raises(UserError, match=r"'box' takes pictures of 2 channels; allowed are .* 3 \(RGB\) or 1 \(luma\)"):
        upscale_picture(BoxEngine(channels=2), Picture(noise(4, 4)))
