from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srquant.errors import UserError
from srquant.imaging import crop_to_multiple, downscale, open_set, upscale
from srquant.metrics import Protocol, psnr


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def textbook_pass(lines: np.ndarray, length: int, factor: float) -> np.ndarray:
    """One pass over axis 0 of uint8 [N,M], written out from the formula with explicit mirrored padding."""
    pad = 4 * math.ceil(4 / min(factor, 1))
    padded = np.pad(lines.astype(np.float64), ((pad, pad), (0, 0)), mode="symmetric")
    stretch = min(factor, 1.0)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    out = np.zeros((length, lines.shape[1]))
    for j in range(length):
        centre = (j + 0.5) / factor - 0.5
        near = range(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1)
        weights = [kernel(stretch * (centre - k)) for k in near]
        for k, weight in zip(near, weights, strict=True):
            out[j] += weight / sum(weights) * padded[k + pad]
    return out


def textbook(image: np.ndarray, height: int, width: int, factor: float) -> np.ndarray:
    """The unrounded result of the second pass, float64 [height,width]; the first is rounded and clipped."""
    rows = np.clip(np.floor(textbook_pass(image, height, factor) + 0.5 + 1e-9), 0, 255).astype(np.uint8)
    return textbook_pass(rows.T, width, factor).T


sizes = {"height": st.integers(1, 9), "width": st.integers(1, 9), "seed": st.integers(0, 2**32 - 1)}


@settings(max_examples=60, deadline=None)
@given(scale=st.sampled_from([1, 2, 4, 8]), **sizes)
def test_upscale_is_the_textbook(height: int, width: int, seed: int, scale: int) -> None:
    # powers of two: all weights are exact in binary, so even ties must round as the formula says
    image = noise(height, width, seed=seed)
    expected = textbook(image, height * scale, width * scale, scale)
    expected = np.clip(np.floor(expected + 0.5 + 1e-9), 0, 255)
    np.testing.assert_array_equal(upscale(image, scale), expected)


@settings(max_examples=60, deadline=None)
@given(scale=st.sampled_from([1, 2, 4]), **sizes)
def test_downscale_is_the_textbook(height: int, width: int, seed: int, scale: int) -> None:
    image = noise(height * scale, width * scale, seed=seed)
    expected = np.clip(np.floor(textbook(image, height, width, 1 / scale) + 0.5 + 1e-9), 0, 255)
    np.testing.assert_array_equal(downscale(image, scale), expected)


@settings(max_examples=60, deadline=None)
@given(scale=st.sampled_from([3, 5]), grow=st.booleans(), **sizes)
def test_other_scales_stay_within_half_a_level(height: int, width: int, seed: int, scale: int, grow: bool) -> None:
    # one column of one value each: the second pass changes nothing, so only one rounding lies between
    column = np.repeat(noise(height if grow else height * scale, 1, seed=seed), 1 if grow else scale, axis=1)
    result = upscale(column, scale) if grow else downscale(column, scale)
    length = height * scale if grow else height
    exact = textbook_pass(column, length, scale if grow else 1 / scale)[:, :1]
    assert np.abs(result - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-9


@settings(max_examples=60, deadline=None)
@given(scale=st.integers(1, 6), value=st.integers(0, 255), channels=st.integers(1, 4), **sizes)
def test_flat_stays_flat(height: int, width: int, seed: int, scale: int, value: int, channels: int) -> None:
    big = upscale(np.full((height, width, channels), value, np.uint8), scale)
    assert big.shape == (height * scale, width * scale, channels)
    assert big.dtype == np.uint8
    assert (big == value).all()
    assert (downscale(big, scale) == value).all()


@settings(max_examples=60, deadline=None)
@given(scale=st.integers(1, 4), **sizes)
def test_channels_and_mirror_images_are_independent(height: int, width: int, seed: int, scale: int) -> None:
    image = noise(height * scale, width * scale, 3, seed=seed)
    for resize in (upscale, downscale):
        whole = resize(image, scale)
        for channel in range(3):
            np.testing.assert_array_equal(whole[..., channel], resize(image[..., channel], scale))
        assert whole.flags.c_contiguous
        if scale in (1, 2, 4):  # exact weights, so the order of the sum is without effect
            np.testing.assert_array_equal(whole[::-1, ::-1], resize(image[::-1, ::-1], scale))


def test_passes_round_in_between_rows_first() -> None:
    image = noise(16, 16, seed=3)
    assert (downscale(image, 2) != downscale(image.T, 2).T).any()
    unrounded = textbook_pass(textbook_pass(image, 8, 0.5).T, 8, 0.5).T
    assert (np.clip(np.floor(unrounded + 0.5), 0, 255) != downscale(image, 2)).any()


def test_a_half_is_rounded_up() -> None:
    # at x2 the value 64 weighs 29/128 and 111/128: 14.5 (to even: 14) and 55.5 (downwards: 55)
    column = upscale(np.array([[0], [0], [64], [0], [0]], np.uint8), 2)[:, 0]
    assert column[3:7].tolist() == [15, 56, 56, 15]


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), scale=st.integers(1, 20))
def test_crop_to_multiple(height: int, width: int, scale: int) -> None:
    image = noise(height, width, 3)
    if min(height, width) < scale:
        with pytest.raises(UserError, match=f"{width}x{height} is too small for scale {scale}"):
            crop_to_multiple(image, scale)
        return
    cropped = crop_to_multiple(image, scale)
    assert cropped.shape[0] % scale == cropped.shape[1] % scale == 0
    assert height - cropped.shape[0] < scale > width - cropped.shape[1]
    np.testing.assert_array_equal(cropped, image[: cropped.shape[0], : cropped.shape[1]])


@pytest.mark.parametrize("scale", [0, -1, 2.0, True, "2"])
def test_wrong_scales(scale: Any) -> None:
    for call in (upscale, downscale, crop_to_multiple):
        with pytest.raises(UserError, match="scale must be a whole number of 1 or more"):
            call(noise(4, 4), scale)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)])
def test_wrong_pictures(image: np.ndarray) -> None:
    for call in (upscale, downscale, crop_to_multiple):
        with pytest.raises(UserError, match=r"expected uint8 pixels \[H,W\] or \[H,W,C\]"):
            call(image, 2)


def test_downscale_refuses_what_it_cannot_divide() -> None:
    with pytest.raises(UserError, match=r"9x8 is not a multiple of 2; crop it with crop_to_multiple"):
        downscale(noise(8, 9), 2)
    with pytest.raises(UserError, match="3x8 is too small for scale 4"):
        downscale(noise(8, 3), 4)


def bicubic_score(shared: Path, name: str, scale: int) -> float:
    folder = shared / "data" / "benchmarks" / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in ../shared/data/benchmarks")
    protocol = Protocol.standard(scale)
    scores = []
    for pair in open_set(folder, scale).pairs:
        lr, hr = pair.load(scale)
        scores.append(psnr(upscale(lr, scale), hr, protocol))
    return float(np.mean(scores))


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.673), (3, 30.403), (4, 28.429)])
def test_bicubic_on_set5(shared: Path, scale: int, expected: float) -> None:
    assert bicubic_score(shared, "Set5", scale) == pytest.approx(expected, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("Set14", 2, 30.325),
        ("Set14", 3, 27.631),
        ("Set14", 4, 26.088),
        ("B100", 2, 29.560),
        ("B100", 4, 25.961),
    ],
)
def test_bicubic_on_the_larger_sets(shared: Path, name: str, scale: int, expected: float) -> None:
    assert bicubic_score(shared, name, scale) == pytest.approx(expected, abs=0.001)
