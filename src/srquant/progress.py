"""How long work tells how far it is: the library calls, the command line draws."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of one task after another."""

    def start(self, name: str, total: int) -> None:
        """A task of `total` equal steps begins."""
        ...

    def advance(self) -> None:
        """One step is done."""
        ...

    def note(self, text: str) -> None:
        """A few words on how the task stands; the next note replaces them."""
        ...

    def warn(self, text: str) -> None:
        """Something that the user has to know and that does not stop the work."""
        ...

    def finish(self) -> None:
        """The task is over, whether or not all steps were done."""
        ...


class Silent:
    """Draws nothing."""

    def start(self, name: str, total: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
