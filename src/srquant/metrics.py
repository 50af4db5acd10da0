"""PSNR, SSIM and colour shift of two 8-bit pictures, under a protocol that prints itself.

The numbers equal those of the MATLAB script that PAMS, CADyQ and DDTB share (zysxmu/DDTB, `metrics/`), run
unmodified in Octave. Scores of a set are the plain mean of the scores of its pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from srquant.errors import UserError, unknown

Channel = Literal["y", "rgb"]

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * _PEAK) ** 2
_C2 = (0.03 * _PEAK) ** 2
_CHANNEL_WORDS = {
    "y": "Y (BT.601, 16..235, unrounded)",
    "rgb": "RGB (PSNR of the three channels' common error, SSIM averaged over them)",
}


@dataclass(frozen=True)
class Protocol:
    """How a score is computed; `str()` says everything that defines the number.

    Attributes:
        channel: "y", the luma of BT.601 in studio range, or "rgb", the three channels.
        shave: pixels taken off each side of both pictures before comparing.

    Raises:
        UserError: another channel, or a negative shave.
    """

    channel: Channel = "y"
    shave: int = 0

    def __post_init__(self) -> None:
        if self.channel not in get_args(Channel):
            raise unknown("channel", str(self.channel), get_args(Channel))
        if self.shave < 0:
            raise UserError(f"shave must be 0 px or more, got {self.shave}")

    @classmethod
    def standard(cls, scale: int) -> Protocol:
        """The protocol of the SR papers: Y, with `scale` pixels shaved off each side."""
        return cls("y", scale)

    def __str__(self) -> str:
        return f"PSNR/SSIM on {_CHANNEL_WORDS[self.channel]}, shave {self.shave} px, 8-bit pictures, mean over images"


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in studio range, float64 [H,W], 16..235, not rounded (MATLAB `rgb2ycbcr`, times 255).

    Args:
        rgb: uint8 [H,W,3], 0..255; [H,W] is grey, that is three equal channels.

    Raises:
        UserError: another shape or type.
    """
    colour = _colour(rgb).astype(np.float64)
    return 16 + (65.481 * colour[..., 0] + 128.553 * colour[..., 1] + 24.966 * colour[..., 2]) / 255


def psnr(sr: np.ndarray, hr: np.ndarray, protocol: Protocol) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE); `math.inf` for identical pictures.

    Args:
        sr: the picture to judge, uint8 [H,W,3] or [H,W] (grey), 0..255.
        hr: the true picture, of the same height and width.
        protocol: the channel and the shave.

    Raises:
        UserError: unequal sizes, another type, or nothing left after the shave.
    """
    left, right = _planes(sr, hr, protocol, smallest=1)
    error = float(np.mean((left - right) ** 2))
    return 10 * math.log10(_PEAK**2 / error) if error else math.inf


def ssim(sr: np.ndarray, hr: np.ndarray, protocol: Protocol) -> float:
    """Structural similarity, at most 1; 11x11 Gaussian window (sigma 1.5) where it fits whole, L = 255.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", 2004, at a single scale with K = (0.01, 0.03); the mean of the map, over the channels too.

    Args:
        sr: the picture to judge, uint8 [H,W,3] or [H,W] (grey), 0..255.
        hr: the true picture, of the same height and width.
        protocol: the channel and the shave.

    Raises:
        UserError: unequal sizes, another type, or fewer than 11 px a side left after the shave.
    """
    left, right = _planes(sr, hr, protocol, smallest=_WINDOW)
    return float(np.mean([_ssim_plane(a, b) for a, b in zip(left, right, strict=True)]))


def colour_shift(sr: np.ndarray, hr: np.ndarray) -> tuple[float, float, float]:
    """Mean of sr - hr over the whole picture for R, G and B, in grey levels (-255..255).

    Args:
        sr: the picture to judge, uint8 [H,W,3] or [H,W] (grey), 0..255.
        hr: the true picture, of the same height and width.

    Raises:
        UserError: unequal sizes or another type.
    """
    left, right = _planes(sr, hr, Protocol("rgb", 0), smallest=1)
    red, green, blue = (float(np.mean(a - b)) for a, b in zip(left, right, strict=True))
    return red, green, blue


def _colour(image: np.ndarray) -> np.ndarray:
    """Check a picture and give it three channels: uint8 [H,W,3]."""
    grey = image.ndim == 2
    if image.dtype != np.uint8 or image.size == 0 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"expected uint8 pixels [H,W,3] or [H,W], got {image.dtype} {list(image.shape)}")
    return np.repeat(image[..., None], 3, axis=2) if grey else image


def _planes(sr: np.ndarray, hr: np.ndarray, protocol: Protocol, *, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures as float64 [C,H,W] of the protocol's channels, shaved; C is 1 for Y, 3 for RGB."""
    sr, hr = _colour(sr), _colour(hr)
    if sr.shape != hr.shape:
        raise UserError(f"pictures of unequal size cannot be compared: {_size(sr)} and {_size(hr)}")
    shave = protocol.shave
    if min(sr.shape[:2]) - 2 * shave < smallest:
        raise UserError(
            f"{_size(sr)} is too small to compare: after a shave of {shave} px each side needs {smallest} px or more"
        )
    inner = (slice(None), slice(shave, sr.shape[0] - shave), slice(shave, sr.shape[1] - shave))
    if protocol.channel == "y":
        return luma(sr)[None][inner], luma(hr)[None][inner]
    left, right = (np.moveaxis(picture, 2, 0).astype(np.float64)[inner] for picture in (sr, hr))
    return left, right


def _ssim_plane(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two float64 planes [H,W] of at least 11x11."""
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    bottom = (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return float(np.mean(top / bottom))


def _blur(plane: np.ndarray) -> np.ndarray:
    """Gaussian blur where the window fits whole: float64 [H,W] -> [H-10,W-10]."""
    offset = np.arange(_WINDOW) - _WINDOW // 2
    kernel = np.exp(-(offset**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    for _ in range(2):  # rows, then columns
        length = plane.shape[0] - _WINDOW + 1
        blurred = np.zeros((length, plane.shape[1]))
        for weight, start in zip(kernel, range(_WINDOW), strict=True):
            blurred += weight * plane[start : start + length]
        plane = blurred.T
    return plane


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
