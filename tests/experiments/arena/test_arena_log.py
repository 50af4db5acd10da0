from __future__ import annotations

from pathlib import Path

import pytest

from srquant.experiments.arena.log import step_milliseconds

ROWS = [(50, 400.0), (60, 400.0), (110, 20.0), (120, 10.0), (170, 40.0), (180, 60.0), (230, 80.0)]
"""Last step and patches a second: a row reaches from behind the row before it."""


def log(folder: Path, rows: list[tuple[int, float]]) -> Path:
    lines = [f"{step},1,0.1,0.001,,{rate},1.0" for step, rate in rows]
    head = "step,epoch,loss,learning_rate,validation_psnr,images_per_second,seconds"
    (folder / "log.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("count", "behind", "rate"),
    [
        (6, 0, 40.0),  # of 400, 20, 10, 40, 60: the first row is left out
        (7, 60, 50.0),  # of 10, 40, 60, 80: statistics till step 60, kernels are compiled in the row of step 110
        (7, 115, 70.0),  # of 60, 80: the row of step 120 reaches back to steps of statistics
        (3, 60, 20.0),  # the only one
    ],
)
def test_steps_are_timed_behind_the_statistics_and_the_first_row(
    count: int, behind: int, rate: float, tmp_path: Path
) -> None:
    assert step_milliseconds(log(tmp_path, ROWS[:count]), 2, behind) == pytest.approx(2000 / rate)


def test_where_nothing_learns_there_is_no_time(tmp_path: Path) -> None:
    assert step_milliseconds(log(tmp_path, ROWS[:2]), 2, 60) is None
    assert step_milliseconds(tmp_path / "nowhere", 2, 0) is None
