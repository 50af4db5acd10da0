"""How fast a training is and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Speed and remaining time of this session.

    Args:
        step: the last one that is done.
        last: of the run.
        batch: patches of a step.
        seconds: of training in earlier sessions.

    Attributes:
        steps: done in this session.
    """

    def __init__(self, step: int, last: int, batch: int, seconds: float) -> None:
        self._start = self._row = time.monotonic()
        self._first, self._last, self._batch = step, last, batch
        self._before = seconds
        self._row_steps = 0
        self.steps = 0

    def tick(self) -> None:
        """A step is done."""
        self.steps += 1
        self._row_steps += 1

    @property
    def seconds(self) -> float:
        """Of training, over all sessions."""
        return self._before + time.monotonic() - self._start

    @contextmanager
    def beside_training(self) -> Iterator[None]:
        """What is done inside does not count for `rate`."""
        began = time.monotonic()
        yield
        self._row += time.monotonic() - began

    def rate(self) -> float:
        """Patches per second of training since the last call."""
        now = time.monotonic()
        rate = self._row_steps * self._batch / max(now - self._row, 1e-9)
        self._row, self._row_steps = now, 0
        return rate

    def note(self, parts: dict[str, float], best: float | None) -> str:
        """Loss, best validation PSNR, patches per second and remaining time."""
        passed = time.monotonic() - self._start
        left = int(passed / self.steps * (self._last - self._first - self.steps))
        score = "" if best is None else f"  {best:.2f} dB"
        rate = self.steps * self._batch / max(passed, 1e-9)
        return (
            f"loss {sum(parts.values()):.3f}{score}  {rate:.0f} images/s  "
            f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        )
