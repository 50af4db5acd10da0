"""Steps of several variants, measured side by side so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Step = Callable[[], object]


def measure(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Processor milliseconds of every variant in every round; two rounds before them warm up."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-2, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                times[name].append(1000 * (time.process_time() - start))
    return times
