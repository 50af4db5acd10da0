"""What people see: tables, progress bars, and one line for a mistake."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

console = Console()
errors = Console(stderr=True, highlight=False)


class Bars:
    """Draws `srquant.progress.Progress` on standard error, and nothing where that is no terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._progress = RichProgress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty())
        self._task: TaskID | None = None

    def start(self, name: str, total: int) -> None:
        """Show a new bar."""
        self._progress.start()
        self._task = self._progress.add_task(name, total=total, note="")

    def advance(self) -> None:
        """Move the bar by one step."""
        if self._task is not None:
            self._progress.advance(self._task)

    def note(self, text: str) -> None:
        """Show some words behind the bar."""
        if self._task is not None:
            self._progress.update(self._task, note=text)

    def warn(self, text: str) -> None:
        """Print a line above the bar, on a terminal or not."""
        warn(text)

    def finish(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.stop()


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; numbers stand right."""
    shown = Table(title=title or None, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numbers = index > 0 and all(row[index][:1] in "-0123456789i" for row in rows)
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)


def pairs(rows: list[tuple[str, str]]) -> None:
    """Print facts, one a line."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"[bold]{name:<{width}}[/bold]  {escape(value)}", highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print something worth knowing in one line on standard error."""
    errors.print(f"[yellow]warning:[/yellow] {escape(' '.join(message.split()))}", soft_wrap=True)


def fail(message: str) -> None:
    """Print a mistake in one line on standard error."""
    errors.print(f"[red]error:[/red] {escape(' '.join(message.split()))}", soft_wrap=True)
