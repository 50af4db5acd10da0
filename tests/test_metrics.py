from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from srquant.errors import UserError
from srquant.metrics import Protocol, colour_shift, luma, psnr, ssim


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    hr = noise(height, width, 3, seed=seed)
    return np.clip(hr + np.random.default_rng(seed + 1).normal(0, 20, hr.shape), 0, 255).astype(np.uint8), hr


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("image", [1, 2, 3, 4])
def test_equals_the_matlab_script(shared: Path, scale: int, image: int) -> None:
    file = shared / "golden" / "metrics_matlab_script.npz"
    if not file.is_file():
        pytest.skip("no ../shared/golden/metrics_matlab_script.npz")
    with np.load(file) as golden:
        key = f"x{scale}_img{image}_"
        sr, hr = golden[key + "sr"], golden[key + "hr"]
        expected_psnr, expected_ssim = float(golden[key + "psnr"]), float(golden[key + "ssim"])
        trainer_psnr = float(golden[key + "psnr_python_trainer"])
    hr = hr[: sr.shape[0], : sr.shape[1]]
    protocol = Protocol.standard(scale)
    assert psnr(sr, hr, protocol) == pytest.approx(expected_psnr, abs=1e-9)
    assert ssim(sr, hr, protocol) == pytest.approx(expected_ssim, abs=1e-9)
    assert psnr(sr, hr, protocol) == pytest.approx(trainer_psnr, abs=1e-6)


@pytest.mark.parametrize("shave", [0, 3])
@pytest.mark.parametrize("channel", ["y", "rgb"])
@pytest.mark.parametrize("size", [(40, 33), (17, 25)])
def test_equals_scikit_image(size: tuple[int, int], channel: Any, shave: int) -> None:
    sr, hr = pair(*size)
    inner = slice(shave, -shave or None)
    if channel == "y":
        left, right = luma(sr)[inner, inner, None], luma(hr)[inner, inner, None]
    else:
        left, right = sr[inner, inner].astype(np.float64), hr[inner, inner].astype(np.float64)
    scored: Any = structural_similarity(
        left,
        right,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
        full=True,
    )
    protocol = Protocol(channel, shave)
    assert ssim(sr, hr, protocol) == pytest.approx(float(np.mean(scored[1][5:-5, 5:-5])), abs=1e-9)
    assert psnr(sr, hr, protocol) == pytest.approx(
        float(peak_signal_noise_ratio(left, right, data_range=255)), abs=1e-9
    )


def test_luma() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(colours), [[16, 235, 81.481, 144.553, 40.966]], atol=1e-12)
    grey = noise(4, 5)
    np.testing.assert_array_equal(luma(grey), luma(np.repeat(grey[..., None], 3, 2)))
    assert luma(grey).dtype == np.float64


def test_known_values() -> None:
    black, dark = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 10, np.uint8)
    assert psnr(dark, black, Protocol("rgb")) == pytest.approx(20 * math.log10(25.5))
    assert psnr(dark, black, Protocol("y")) == pytest.approx(20 * math.log10(25.5 * 255 / 219))
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, black, Protocol("rgb")) == pytest.approx(c1 / (100 + c1))


def test_shave_takes_off_what_it_says() -> None:
    hr = noise(16, 18, 3)
    sr = hr.copy()
    sr[:2] ^= 255
    sr[:, -2:] ^= 255
    assert psnr(sr, hr, Protocol("rgb", 1)) < 30
    assert psnr(sr, hr, Protocol("rgb", 2)) == math.inf


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    shave=st.integers(0, 8),
    channel=st.sampled_from(["y", "rgb"]),
    same=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_number_or_a_clear_refusal(height: int, width: int, shave: int, channel: Any, same: bool, seed: int) -> None:
    sr, hr = pair(height, width, seed)
    sr = hr if same else sr
    protocol = Protocol(channel, shave)
    for metric, smallest in ((psnr, 1), (ssim, 11)):
        if min(height, width) - 2 * shave < smallest:
            with pytest.raises(UserError, match=f"{width}x{height} is too small .* shave of {shave} px"):
                metric(sr, hr, protocol)
            continue
        score = metric(sr, hr, protocol)
        assert score == metric(hr, sr, protocol)
        assert not math.isnan(score)
        if same:
            assert score == (math.inf if metric is psnr else pytest.approx(1, abs=1e-12))
        elif metric is ssim:
            assert score < 1


def test_grey_pictures_count_as_three_equal_channels() -> None:
    sr, hr = (picture[..., 0] for picture in pair(20, 20))
    three = [np.repeat(picture[..., None], 3, 2) for picture in (sr, hr)]
    for protocol in (Protocol("y", 2), Protocol("rgb", 2)):
        assert psnr(sr, hr, protocol) == psnr(three[0], three[1], protocol)
        assert ssim(sr, three[1], protocol) == ssim(three[0], hr, protocol)


def test_colour_shift() -> None:
    hr = np.full((4, 6, 3), 100, np.uint8)
    sr = hr.copy()
    sr[..., 0] += 3
    sr[:2, :, 2] -= 100
    assert colour_shift(sr, hr) == (3.0, 0.0, -50.0)
    assert colour_shift(hr[..., 0], sr[..., 0]) == (-3.0, -3.0, -3.0)


def test_wrong_pictures() -> None:
    good = noise(20, 20, 3)
    for metric in (
        lambda a, b: psnr(a, b, Protocol()),
        lambda a, b: ssim(a, b, Protocol()),
        colour_shift,
    ):
        with pytest.raises(UserError, match="unequal size cannot be compared: 20x20 and 19x20"):
            metric(good, good[:, :19])
        for bad in (good / 255.0, good[..., :2], good[:0], good[None]):
            with pytest.raises(UserError, match=r"expected uint8 pixels \[H,W,3\] or \[H,W\], got"):
                metric(good, bad)
    with pytest.raises(UserError, match="expected uint8"):
        luma(good.astype(np.float32))


def test_the_protocol_prints_itself() -> None:
    assert str(Protocol.standard(2)) == (
        "PSNR/SSIM on Y (BT.601, 16..235, unrounded), shave 2 px, 8-bit pictures, mean over images"
    )
    assert str(Protocol("rgb", 10)) == (
        "PSNR/SSIM on RGB (PSNR of the three channels' common error, SSIM averaged over them), "
        "shave 10 px, 8-bit pictures, mean over images"
    )
    assert Protocol.standard(4) == Protocol("y", 4)


def test_wrong_protocols() -> None:
    channel: Any = "Y"
    with pytest.raises(UserError, match=r"unknown channel 'Y'; known: y, rgb"):
        Protocol(channel)
    with pytest.raises(UserError, match="shave must be 0 px or more, got -1"):
        Protocol("y", -1)
