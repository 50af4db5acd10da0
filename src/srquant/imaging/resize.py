"""Bicubic resize that equals MATLAB's `imresize` bit for bit; the low-resolution pictures of every SR paper.

Source: the algorithm of MATLAB's `imresize(image, factor, 'bicubic')` for uint8, checked against the LR files
that MATLAB wrote for Set5 and Set14 at x2, x3 and x4 (no differing sample). Cubic kernel with a = -0.5,
stretched by the scale when shrinking; edges mirrored; rows first, then columns; each pass rounds half up and
clips to 0..255.
"""

from __future__ import annotations

import math

import numpy as np

from srquant.errors import UserError


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink by an integer factor, with antialiasing.

    Args:
        image: uint8 [H,W] or [H,W,C], 0..255; H and W are multiples of `scale`.
        scale: 1 or more; 1 returns a copy.

    Returns:
        uint8 [H/scale, W/scale] or [H/scale, W/scale, C].

    Raises:
        UserError: `image` is no such array, is smaller than `scale`, or its sides are not multiples of
            `scale` (see `crop_to_multiple`), or `scale` is no whole number above 0.
    """
    _check_room(image, scale)
    height, width = image.shape[:2]
    if height % scale or width % scale:
        raise UserError(f"{width}x{height} is not a multiple of {scale}; crop it with crop_to_multiple first")
    return _resize(image, height // scale, width // scale, 1 / scale)


def upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge by an integer factor.

    Args:
        image: uint8 [H,W] or [H,W,C], 0..255.
        scale: 1 or more; 1 returns a copy.

    Returns:
        uint8 [H*scale, W*scale] or [H*scale, W*scale, C].

    Raises:
        UserError: `image` is no such array, or `scale` is no whole number above 0.
    """
    _check(image, scale)
    return _resize(image, image.shape[0] * scale, image.shape[1] * scale, float(scale))


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """Cut the right and lower edge so that both sides are multiples of `scale`; a view.

    Args:
        image: uint8 [H,W] or [H,W,C].
        scale: 1 or more.

    Raises:
        UserError: `image` is no such array or smaller than `scale`, or `scale` is no whole number above 0.
    """
    _check_room(image, scale)
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def check_scale(scale: int) -> None:
    """Refuse a scale that is no whole number above 0.

    Raises:
        UserError: names the value.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, np.integer)) or scale < 1:
        raise UserError(f"scale must be a whole number of 1 or more, got {scale!r}")


def _check(image: np.ndarray, scale: int) -> None:
    check_scale(scale)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise UserError(f"expected uint8 pixels [H,W] or [H,W,C], at least 1x1, got {image.dtype} {list(image.shape)}")


def _check_room(image: np.ndarray, scale: int) -> None:
    _check(image, scale)
    height, width = image.shape[:2]
    if min(height, width) < scale:
        raise UserError(f"{width}x{height} is too small for scale {scale}: each side needs {scale} px or more")


def _resize(image: np.ndarray, height: int, width: int, factor: float) -> np.ndarray:
    rows = _pass(image, height, factor)
    return np.ascontiguousarray(_pass(rows.swapaxes(0, 1), width, factor).swapaxes(0, 1))


def _pass(image: np.ndarray, length: int, factor: float) -> np.ndarray:
    """Resample axis 0 to `length`, uint8 [N,...] -> uint8 [length,...]."""
    weights, indices = _taps(image.shape[0], length, factor)
    total = np.zeros((length, *image.shape[1:]))
    spread = (length,) + (1,) * (image.ndim - 1)
    for weight, index in zip(weights, indices, strict=True):
        total += weight.reshape(spread) * image[index]
    return np.clip(np.floor(total + 0.5), 0, 255).astype(np.uint8)


def _taps(size: int, length: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights float64 [taps, length] and source indices int [taps, length] of one pass.

    Output j (from 1) lies at u = j / factor + (1 - 1 / factor) / 2 of the source; the weights sum to 1.
    """
    stretch = min(factor, 1.0)
    reach = 4 / stretch
    taps = math.ceil(reach) + 2
    centre = np.arange(1, length + 1) / factor + 0.5 * (1 - 1 / factor)
    position = np.floor(centre - reach / 2) + np.arange(taps)[:, None]
    weights = _cubic(stretch * (centre - position))
    weights /= weights.sum(axis=0)
    mirrored = (position.astype(np.int64) - 1) % (2 * size)
    indices = np.minimum(mirrored, 2 * size - 1 - mirrored)
    used = weights.any(axis=1)
    return weights[used], indices[used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
