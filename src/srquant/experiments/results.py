"""The table of results: one CSV row per finished experiment, with everything that its numbers have to name."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from srquant.errors import UserError
from srquant.files import atomic_path

Row = Mapping[str, str]

COLUMNS = (
    "experiment",
    "network",
    "scale",
    "method",
    "weight_bits",
    "activation_bits",
    "placement",
    "rest",
    "steps",
    "batch",
    "patch",
    "precision",
    "validation_psnr",
    "engine",
    "sha256",
    "protocol",
    "finished_at",
)
"""Columns that every row has; those of the benchmark sets follow."""


def read_results(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file yet.

    Raises:
        UserError: the file cannot be read, or is no such table.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the results '{path}': {error}") from error
    if "experiment" not in names or any(None in row or None in row.values() for row in rows):
        raise UserError(f"'{path}' is no table of results: every line has to fill the columns of the first")
    return rows


def add_result(path: Path, row: Row) -> None:
    """Add a row; the file is replaced whole. A row of the same experiment is replaced, so adding twice is adding once.

    Raises:
        UserError: the file is no table of results or cannot be written.
    """
    rows: list[Row] = [old for old in read_results(path) if old["experiment"] != row["experiment"]]
    rows.append(row)
    columns = [*COLUMNS, *dict.fromkeys(name for each in rows for name in each if name not in COLUMNS)]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
