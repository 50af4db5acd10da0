"""What the log of a training tells an arena: how long a step takes, and the validation PSNR along the way."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

LOG_FILE = "log.csv"


def step_milliseconds(folder: Path, batch: int, behind: int) -> float | None:
    """Median duration of a step that learns, over the rows of the log; None where there are none.

    The first row is left out where there are more: kernels are compiled in it.

    Args:
        folder: of the run.
        batch: patches of a step.
        behind: the last step that only gathers statistics; rows that reach back to it, or before, do not count.
    """
    rates: list[float] = []
    before = 0
    for row in _rows(folder):
        if before >= behind:
            rates.append(float(row["images_per_second"]))
        before = int(row["step"])
    return 1000 * batch / median(rates[1:] or rates) if rates else None


def validation_curve(folder: Path) -> dict[int, float]:
    """PSNR in dB by step."""
    return {int(row["step"]): float(row["validation_psnr"]) for row in _rows(folder) if row["validation_psnr"]}


def _rows(folder: Path) -> list[dict[str, str]]:
    path = folder / LOG_FILE
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
