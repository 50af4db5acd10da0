"""Markdown tables, and their places in a document: no number of a document is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import machine


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first stand right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(what: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """What was measured, on which machine, and the table."""
    return "\n".join([f"{what}  ", machine.describe(), "", table(columns, rows), ""])


def insert(document: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a document."""
    before = document.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    after, found = pattern.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before)
    if found != 1:
        raise SystemExit(f"'{document}' has {found} places for '{name}', not one")
    document.write_text(after, encoding="utf-8")
