from __future__ import annotations

import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from small_training import log_rows

from srquant.errors import UserError
from srquant.training.log import Log, Row


def row(step: int, psnr: float | None = None, **parts: float) -> Row:
    return Row(step, 1 + step // 10, sum(parts.values()), 1e-4, psnr, 100.0, step * 0.5, parts)


def test_rows_are_in_both_files(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    log.write(row(5, l1=3.0))
    log.write(row(10, 31.5, l1=2.0))
    log.close()
    assert log_rows(tmp_path) == [
        {"step": "5", "epoch": "1", "loss": "3.0", "learning_rate": "0.0001", "validation_psnr": "", "part_l1": "3.0"},
        {
            "step": "10",
            "epoch": "2",
            "loss": "2.0",
            "learning_rate": "0.0001",
            "validation_psnr": "31.5",
            "part_l1": "2.0",
        },
    ]


def test_a_part_that_comes_later_gets_a_column(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    log.write(row(1, l1=3.0))
    log.write(row(2, l1=2.0, skt=0.5))
    log.write(row(3, skt=0.25))
    log.close()
    rows = log_rows(tmp_path)
    assert [(r["part_l1"], r["part_skt"]) for r in rows] == [("3.0", ""), ("2.0", "0.5"), ("", "0.25")]


def test_rows_behind_the_step_are_removed(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(row(step, l1=float(step)))
    log.close()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,half a li")
    log = Log(tmp_path, 2)
    log.write(row(5, l1=5.0))
    log.close()
    assert [r["step"] for r in log_rows(tmp_path)] == ["1", "2", "5"]
    connection = sqlite3.connect(tmp_path / "log.sqlite")
    assert connection.execute("SELECT step, name, value FROM parts ORDER BY step").fetchall() == [
        (1, "l1", 1.0),
        (2, "l1", 2.0),
        (5, "l1", 5.0),
    ]
    connection.close()


def test_a_log_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match=r"log\.sqlite"):
        Log(tmp_path, 0)


def test_tensorboard_gets_the_rows_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((Path(folder), purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    stand_in: Any = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    log = Log(tmp_path, 7)
    log.write(row(8, 30.0, l1=2.0))
    log.close()
    assert written[0] == (tmp_path / "tensorboard", 8)
    assert ("loss", 2.0, 8) in written
    assert ("parts/l1", 2.0, 8) in written
    assert ("validation_psnr", 30.0, 8) in written
    assert written[-1] == "closed"
