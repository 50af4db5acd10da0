"""What the log of a training tells an arena: how long a step takes, and the validation PSNR along the way."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

LOG_FILE = "log.csv"


def step_milliseconds(folder: Path, batch: int) -> float | None:
    """Median duration of a step over the rows of the log; None where there are none.

    Args:
        folder: of the run.
        batch: patches of a step.
    """
    rates = [float(row["images_per_second"]) for row in _rows(folder)]
    return 1000 * batch / median(rates) if rates else None


def validation_curve(folder: Path) -> dict[int, float]:
    """PSNR in dB by step."""
    return {int(row["step"]): float(row["validation_psnr"]) for row in _rows(folder) if row["validation_psnr"]}


def _rows(folder: Path) -> list[dict[str, str]]:
    path = folder / LOG_FILE
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
