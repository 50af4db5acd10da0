"""Colour as luma and two colour differences: what networks for one channel see, and the way back.

ITU-R BT.601 in full range, as in JPEG (JFIF 1.02) and in OpenCV's YCrCb: Y = 0.299 R + 0.587 G + 0.114 B in
0..255, Cb and Cr are differences around 128. Scores use another luma, the studio range of `srquant.metrics.luma`.
"""

from __future__ import annotations

import numpy as np

from srquant.errors import UserError

_BITS = 16
_HALF = 1 << (_BITS - 1)
_ROWS = 256
"""Rows that are converted at a time: memory follows them, not the picture."""

_FORWARD = ((0.299, 0.587, 0.114), (-0.299 / 1.772, -0.587 / 1.772, 0.5), (0.5, -0.587 / 1.402, -0.114 / 1.402))
"""Rows Y, Cb, Cr over columns R, G, B."""

_BACK = ((1.0, 0.0, 1.402), (1.0, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587), (1.0, 1.772, 0.0))
"""Rows R, G, B over columns Y, Cb, Cr."""

_NEUTRAL = 128


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of a picture, rounded half up; grey keeps its value.

    Args:
        rgb: uint8 [H,W,3].

    Returns:
        uint8 [H,W,1].
    """
    return _mixed(rgb, _fixed(_FORWARD[:1]), (0,))


def to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """Y, Cb and Cr of a picture, rounded half up.

    Args:
        rgb: uint8 [H,W,3].

    Returns:
        uint8 [H,W,3]; grey has Cb = Cr = 128.
    """
    return _mixed(rgb, _fixed(_FORWARD), (0, _NEUTRAL, _NEUTRAL))


def to_rgb(ycbcr: np.ndarray) -> np.ndarray:
    """The inverse of `to_ycbcr`, within 1 level; what lies outside RGB is clipped.

    Args:
        ycbcr: uint8 [H,W,3].

    Returns:
        uint8 [H,W,3].
    """
    back = _fixed(_BACK)
    neutral = np.array([0, _NEUTRAL, _NEUTRAL])
    return _mixed(ycbcr, back, tuple(-(back @ neutral) / (1 << _BITS)))


def seen_by(channels: int, rgb: np.ndarray) -> np.ndarray:
    """What a network for so many channels sees of a picture: the picture itself, or its luma.

    Args:
        channels: 3 or 1.
        rgb: uint8 [H,W,3].

    Returns:
        uint8 [H,W,channels].

    Raises:
        UserError: another number of channels.
    """
    if channels not in (1, 3):
        raise UserError(f"a network takes pictures of {channels} channels; known are 3 (RGB) and 1 (luma)")
    return rgb if channels == 3 else luma(rgb)


def _fixed(matrix: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """A matrix in whole 65536ths, int64."""
    return np.rint(np.array(matrix) * (1 << _BITS)).astype(np.int64)


def _mixed(pixels: np.ndarray, matrix: np.ndarray, offset: tuple[float, ...]) -> np.ndarray:
    """`matrix` (in 65536ths) times every pixel plus `offset`, rounded half up and clipped: uint8 [H,W,len(matrix)]."""
    result = np.empty((*pixels.shape[:2], len(matrix)), np.uint8)
    added = np.rint(np.array(offset) * (1 << _BITS)).astype(np.int32) + np.int32(_HALF)
    for start in range(0, len(pixels), _ROWS):
        part = pixels[start : start + _ROWS].astype(np.int32)
        for channel, weights in enumerate(matrix.astype(np.int32)):
            total = part[..., 0] * weights[0] + part[..., 1] * weights[1] + part[..., 2] * weights[2]
            result[start : start + _ROWS, :, channel] = ((total + added[channel]) >> _BITS).clip(0, 255)
    return result
