"""Times of several engines on one picture, interleaved, so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

from srquant.engines import Engine, Pixels
from srquant.progress import Progress


def interleaved_medians(
    engines: Mapping[str, Engine], picture: Pixels, rounds: int, progress: Progress
) -> dict[str, float]:
    """Median time of a run in milliseconds, by the engines' keys.

    Args:
        engines: each is run once untimed first.
        picture: uint8 [H, W, C].
        rounds: in each of them every engine runs once.
        progress: told of every round.
    """
    times: dict[str, list[float]] = {key: [] for key in engines}
    progress.start("timing", rounds + 1)
    try:
        for number in range(rounds + 1):
            for key, engine in engines.items():
                start = time.perf_counter()
                engine.run(picture)
                if number:
                    times[key].append(1000 * (time.perf_counter() - start))
            progress.advance()
    finally:
        progress.finish()
    return {key: median(found) for key, found in times.items()}
