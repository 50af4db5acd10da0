"""What is kept of a run: rows in SQLite, the same rows as CSV, and TensorBoard where it is installed.

SQLite (`log.sqlite`) is the truth: the table `log` has one row per logged step, the table `parts` its loss parts.
`log.csv` is written from it, with one column per part.
"""

from __future__ import annotations

import csv
import importlib.util
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from srquant.errors import UserError
from srquant.files import atomic_path


@dataclass(frozen=True)
class Row:
    """One logged step.

    Attributes:
        step: from 1.
        epoch: from 1.
        loss: mean over the steps since the row before.
        learning_rate: of the first parameter group.
        validation_psnr: where this step was validated.
        images_per_second: since the row before.
        seconds: of training so far, over all sessions.
        parts: mean loss parts since the row before, by name.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    validation_psnr: float | None
    images_per_second: float
    seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)


_COLUMNS = [f.name for f in fields(Row) if f.name != "parts"]


class Log:
    """Rows of a run's folder.

    Args:
        folder: of the run.
        step: rows behind it are removed: the run goes on from there.

    Raises:
        UserError: the folder cannot be written, or holds another file under the name of the log.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._csv = folder / "log.csv"
        path = folder / "log.sqlite"
        try:
            self._rows = sqlite3.connect(path)
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS log (step INTEGER PRIMARY KEY, epoch INTEGER, loss REAL, "
                "learning_rate REAL, validation_psnr REAL, images_per_second REAL, seconds REAL)"
            )
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS parts (step INTEGER, name TEXT, value REAL, PRIMARY KEY (step, name))"
            )
            for table in ("log", "parts"):
                self._rows.execute(f"DELETE FROM {table} WHERE step > ?", (step,))
            self._rows.commit()
            self._names = [n for (n,) in self._rows.execute("SELECT name FROM parts GROUP BY name ORDER BY MIN(rowid)")]
        except sqlite3.Error as error:
            raise UserError(f"cannot use '{path}' as log: {error}; remove it to begin a new one") from error
        self._rewrite()
        self._board = _tensorboard(folder / "tensorboard", step)

    def write(self, row: Row) -> None:
        """Add a row; it is on disk when this returns.

        Raises:
            UserError: the disk is full or gone.
        """
        try:
            with self._rows:
                values = [getattr(row, name) for name in _COLUMNS]
                self._rows.execute(f"INSERT OR REPLACE INTO log VALUES ({','.join('?' * len(values))})", values)
                parts = [(row.step, name, value) for name, value in row.parts.items()]
                self._rows.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", parts)
            if new := [name for name in row.parts if name not in self._names]:
                self._names += new
                self._rewrite()
            else:
                with self._csv.open("a", newline="") as file:
                    csv.writer(file).writerow(self._line(asdict(row), row.parts))
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"cannot write the log '{self._csv}': {error}") from error
        if self._board is not None:
            _draw(self._board, row)

    def close(self) -> None:
        """Release the files."""
        self._rows.close()
        if self._board is not None:
            self._board.close()

    def _rewrite(self) -> None:
        """Write the CSV anew from the tables."""
        parts: dict[int, dict[str, float]] = {}
        for step, name, value in self._rows.execute("SELECT step, name, value FROM parts"):
            parts.setdefault(step, {})[name] = value
        with atomic_path(self._csv) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*_COLUMNS, *(f"part_{name}" for name in self._names)])
            for values in self._rows.execute(f"SELECT {','.join(_COLUMNS)} FROM log ORDER BY step"):
                row = dict(zip(_COLUMNS, values, strict=True))
                writer.writerow(self._line(row, parts.get(row["step"], {})))

    def _line(self, row: Mapping[str, Any], parts: Mapping[str, float]) -> list[object]:
        return [*(row[name] for name in _COLUMNS), *(parts.get(name) for name in self._names)]


def _tensorboard(folder: Path, step: int) -> Any | None:
    """A writer whose entries behind `step` are hidden, or None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def _draw(board: Any, row: Row) -> None:
    scalars = {"loss": row.loss, "learning_rate": row.learning_rate, "images_per_second": row.images_per_second}
    scalars |= {f"parts/{name}": value for name, value in row.parts.items()}
    if row.validation_psnr is not None:
        scalars["validation_psnr"] = row.validation_psnr
    for name, value in scalars.items():
        board.add_scalar(name, value, row.step)
