"""Which patches a training step sees: a pure function of the seed and the step.

Every patch has a counter-based generator of its own (Philox, keyed by seed and step, counted by the place in the
batch). Nothing has to be saved to go on with a run, and neither prefetching nor the number of processes changes the
order. Only raw words of the generator are used, so the draw does not depend on the version of NumPy.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srquant.training.cache import Pixels


class Draw(NamedTuple):
    """One patch: which picture, the words that place it, and how it is turned."""

    picture: int
    row: int
    column: int
    turn: int


class Lottery:
    """Draws pictures with a chance proportional to their area, so that every pixel is seen equally often.

    Args:
        areas: pixels of each picture.
        seed: of the run.
    """

    def __init__(self, areas: Sequence[int], seed: int) -> None:
        self._ends = list(itertools.accumulate(areas))
        self._seed = seed

    def draw(self, step: int, place: int, attempt: int = 0) -> Draw:
        """The patch at one place of a step's batch.

        Args:
            step: from 1.
            place: 0..batch-1.
            attempt: counts the pictures of this place that could not be read.
        """
        generator = np.random.Philox(
            key=np.array([self._seed, step], dtype=np.uint64),
            counter=np.array([0, place, attempt, 0], dtype=np.uint64),
        )
        choice, row, column, turn = map(int, generator.random_raw(4))
        picture = bisect.bisect_right(self._ends, _below(choice, self._ends[-1]))
        return Draw(picture, row, column, turn & 7)


def cut(draw: Draw, low: Pixels, high: Pixels, patch: int) -> tuple[Pixels, Pixels]:
    """The patch of a picture, flipped and transposed; views.

    Args:
        draw: where and how.
        low: uint8 [h,w,3], both sides `patch` or more.
        high: uint8 [s*h,s*w,3].
        patch: side in LR pixels.

    Returns:
        uint8 [patch,patch,3] and [s*patch,s*patch,3].
    """
    scale = high.shape[0] // low.shape[0]
    top = _below(draw.row, low.shape[0] - patch + 1)
    left = _below(draw.column, low.shape[1] - patch + 1)
    return (
        _turned(low[top : top + patch, left : left + patch], draw.turn),
        _turned(high[scale * top : scale * (top + patch), scale * left : scale * (left + patch)], draw.turn),
    )


def _below(word: int, count: int) -> int:
    """Map a 64-bit word evenly to 0..count-1."""
    return (word * count) >> 64


def _turned(pixels: Pixels, turn: int) -> Pixels:
    """Flips of the rows (1) and columns (2) and transposition (4)."""
    pixels = pixels[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    return pixels.swapaxes(0, 1) if turn & 4 else pixels
