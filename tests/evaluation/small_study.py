"""A small clip study for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_quantized import float_network, noise

from srquant.config import CalibrationConfig
from srquant.evaluation.clip_rows import StudySettings
from srquant.evaluation.clip_study import run_clip_study
from srquant.imaging import Picture, write_picture
from srquant.networks.info import SRNetwork
from srquant.progress import Silent

SETTINGS = StudySettings(CalibrationConfig(images=7, crop=12), height=10, width=12, rounds=2, threads=1)


def make_place(folder: Path) -> Path:
    """A set of two pictures and seven more to calibrate on, of black and white squares: each overshoots."""
    for name, count in (("Set2/HR", 2), ("others", 7)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = noise(18, 20 + i, seed=count + i).repeat(3, axis=0).repeat(3, axis=1)
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8) if name == "others" else pixels
            write_picture(folder / name / f"p{i}.png", Picture(pixels, None, False, None, None))
    return folder


def run(place: Path, folder: Path, settings: StudySettings = SETTINGS, network: SRNetwork | None = None) -> list[Path]:
    network = network or float_network("abpn_x3")
    return run_clip_study(network, place / "Set2", place / "others", folder, settings, Silent())
