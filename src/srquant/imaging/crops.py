"""Calibration crops: a fixed choice of low-resolution patches from a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srquant.config import CalibrationConfig
from srquant.errors import UserError
from srquant.files import sha256
from srquant.imaging.colour import seen_by
from srquant.imaging.picture import find_pictures, read_picture
from srquant.imaging.resize import downscale


@dataclass(frozen=True, eq=False)
class Crop:
    """One patch.

    Attributes:
        pixels: uint8 [h, w, 3], low resolution; [h, w, 1] for a network for luma.
        record: plain data that names the file, its SHA-256 and the place, for the artefact.
    """

    pixels: NDArray[np.uint8]
    record: dict[str, object]


def calibration_crops(folder: Path, scale: int, config: CalibrationConfig, channels: int = 3) -> list[Crop]:
    """One crop from each chosen picture; the same files and seed give the same crops.

    Args:
        folder: pictures, or a folder that holds them under `HR/`. They are high-resolution and are downscaled by
            the protocol's bicubic, unless `config.low_resolution`.
        scale: enlargement of the network.
        config: how many pictures, how large a crop, which seed.
        channels: of the network: 3, or 1 for the luma of the same crops.

    Raises:
        UserError: the folder is missing or empty, or a picture cannot be read or is smaller than the scale.
    """
    nested = folder / "HR"
    paths = find_pictures(nested if nested.is_dir() and not config.low_resolution else folder)
    random = np.random.default_rng(config.seed)
    if len(paths) > config.images:
        paths = [paths[i] for i in sorted(random.choice(len(paths), config.images, replace=False))]
    factor = 1 if config.low_resolution else scale
    return [_crop(path, factor, config.crop, channels, random) for path in paths]


def _crop(path: Path, factor: int, side: int, channels: int, random: np.random.Generator) -> Crop:
    pixels = read_picture(path).rgb
    sizes = [min(side, length // factor) for length in pixels.shape[:2]]
    if min(sizes) < 1:
        raise UserError(f"'{path}' is smaller than the scale {factor}: {pixels.shape[1]}x{pixels.shape[0]} pixels")
    top, left = (int(random.integers(0, n // factor - size + 1)) for n, size in zip(pixels.shape, sizes, strict=False))
    rows, columns = (
        slice(start * factor, (start + size) * factor) for start, size in zip((top, left), sizes, strict=True)
    )
    patch = pixels[rows, columns]
    place = [top, left, *sizes]
    record: dict[str, object] = {"file": path.name, "sha256": sha256(path), "top_left_height_width": place}
    return Crop(seen_by(channels, downscale(patch, factor) if factor > 1 else patch), record)
