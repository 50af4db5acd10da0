"""Flat pictures: what an engine makes of white, of black and of the greys between them.

A picture of one colour has only one right enlargement. Errors that a photograph hides, such as white that turns grey
or a step of a ramp that falls, show in it at once. Judged are the pixels that do not see the picture's border, where
networks see the zeros of their padding; what they make of the border is told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srquant.engines.base import Engine, Pixels
from srquant.metrics import colour_shift

WHITE = 255
STEPS = tuple(range(0, WHITE + 1, 5))
"""Levels of the grey ramp, black and white among them."""

TOLERANCE = 1.0
"""Grey levels that an integer engine may be off by and still give white, black and a ramp that rises."""

BORDER_TOLERANCE = 16
"""Grey levels that an engine may be off by more than the float network where pixels see the picture's border."""

_CORE = 2
"""Side of what is judged, in low-resolution pixels, where a picture is made as large as the network looks."""
_WHOLE_SIDE = 48
"""Side of the picture for a network that looks at the whole of it; the middle third is judged."""


@dataclass(frozen=True)
class FlatPictures:
    """What an engine makes of flat pictures, in grey levels.

    Attributes:
        white: darkest value of a white picture.
        black: brightest value of a black picture.
        fall: by how much a step of the ramp lies below a darker one at most, as the mean of a channel.
        shift: mean of a step's channel less its level, where that is largest; its sign tells brighter or darker.
        border: largest difference of any value, those at the border included, from its step's level.
        judged: whether any pixel does not see the border; where a file's shape is too small for one, the numbers are
            those of whole pictures and nothing is at fault.
    """

    white: int
    black: int
    fall: float
    shift: float
    border: int
    judged: bool = True

    def __str__(self) -> str:
        if not self.judged:
            return "all border, not judged"
        ramp = f"falls by {self.fall:.2f}" if self.fall else "never falls"
        shift = f"greys shift by {self.shift:+.2f} at most"
        return f"white {self.white}, black {self.black}, ramp {ramp}, {shift}, {self.border} with the border"

    def faults(self, wanted: FlatPictures | None = None) -> list[str]:
        """What is off by more than 1 level, in words.

        Args:
            wanted: what the float network makes of the same pictures; by default white, black and a rising ramp.
        """
        white, black, fall = (WHITE, 0, 0.0) if wanted is None else (wanted.white, wanted.black, wanted.fall)
        found = []
        if not self.judged:
            return found
        if self.white < white - TOLERANCE:
            found.append(f"white becomes {self.white}")
        if self.black > black + TOLERANCE:
            found.append(f"black becomes {self.black}")
        if self.fall > fall + TOLERANCE:
            found.append(f"the grey ramp falls by {self.fall:.2f}")
        return found

    def is_worse_at_the_border(self, wanted: FlatPictures) -> bool:
        """Whether the border is off by more than 16 levels more than the float network's, `wanted`."""
        return self.judged and self.border > wanted.border + BORDER_TOLERANCE


def judge_flat_pictures(
    engine: Engine, levels: Sequence[int] = STEPS, advance: Callable[[], None] | None = None
) -> FlatPictures:
    """Run an engine on flat grey pictures.

    Args:
        engine: runs a network for colour or for luma.
        levels: of the ramp, rising from 0 to 255.
        advance: called after each picture.
    """
    (height, width), margins = _plan(engine)
    scale = engine.info.scale
    inside = tuple(
        slice(margin * scale, (length - margin) * scale)
        for margin, length in zip(margins or (0, 0), (height, width), strict=True)
    )
    shifts, ends, border = [], [], 0
    for level in levels:
        found = engine.run(np.full((height, width, engine.info.channels), level, np.uint8))
        core = found[inside]
        shifts.append(_shift(core, level))
        ends.append((int(core.min()), int(core.max())))
        border = max(border, int(np.abs(found.astype(np.int16) - level).max()))
        if advance is not None:
            advance()
    every = np.stack(shifts)
    steps = every + np.array(levels)[:, None]
    fall = float((np.maximum.accumulate(steps) - steps).max())
    shift = float(every.flat[np.abs(every).argmax()])
    return FlatPictures(ends[-1][0], ends[0][1], fall, shift, border, margins is not None)


def _plan(engine: Engine) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Height and width of the pictures, and the margins above and beside what is judged, in low-resolution pixels.

    The margins are None where nothing would be left.
    """
    multiple, halo = engine.info.size_multiple, engine.halo
    side = _WHOLE_SIDE if halo is None else 2 * halo + _CORE
    side = -(-side // multiple) * multiple
    height, width = engine.shape or (side, side)
    if halo is None:
        return (height, width), ((height - 1) // 3, (width - 1) // 3)
    return (height, width), (halo, halo) if min(height, width) > 2 * halo else None


def _shift(core: Pixels, level: int) -> np.ndarray:
    """Mean of each channel less the level, float64 [3]."""
    seen = core if core.shape[2] > 1 else core[..., 0]
    return np.array(colour_shift(seen, np.full_like(seen, level)))
