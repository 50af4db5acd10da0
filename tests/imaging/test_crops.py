from __future__ import annotations

from pathlib import Path

import numpy as np

from srquant.config import CalibrationConfig
from srquant.imaging import Picture, write_picture
from srquant.imaging.colour import luma
from srquant.imaging.crops import calibration_crops


def test_crops_for_luma_are_the_luma_of_the_same_crops(tmp_path: Path) -> None:
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 70, 3), dtype=np.uint8)
        write_picture(tmp_path / f"{seed}.png", Picture(pixels))
    config = CalibrationConfig(images=2, crop=16)
    colour, grey = (calibration_crops(tmp_path, 2, config, channels) for channels in (3, 1))
    assert [crop.record for crop in grey] == [crop.record for crop in colour]
    for one, other in zip(grey, colour, strict=True):
        assert one.pixels.shape == (16, 16, 1)
        assert np.array_equal(one.pixels, luma(other.pixels))
