"""A sheet of the patches that lost most, side by side as several engines give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from srquant.engines import Engine, Pixels
from srquant.imaging import BenchmarkSet
from srquant.upscaling import upscale_rgb

_SIDE = 48
"""Of a patch in enlarged pixels, a multiple of every scale; smaller where a picture is."""
_ZOOM = 4
_GAP = 8
_HEADING = 16


@dataclass(frozen=True, eq=False)
class Patch:
    """One place of one picture.

    Attributes:
        picture: its name.
        loss: mean squared error of the worst engine less that of the first.
        views: uint8 [side, side, 3] by heading.
    """

    picture: str
    loss: float
    views: Mapping[str, Pixels]


def worst_patches(engines: Mapping[str, Engine], benchmark: BenchmarkSet, count: int = 6) -> list[Patch]:
    """The patches where an engine is worse than the first one by most, on a grid of places that do not overlap.

    Args:
        engines: by heading; the first one is what the others are compared with.
        benchmark: LR and HR pictures.
        count: how many patches.
    """
    scale = next(iter(engines.values())).info.scale
    found: list[Patch] = []
    for pair in benchmark.pairs:
        low, high = pair.load(scale)
        views = {"low resolution": low.repeat(scale, axis=0).repeat(scale, axis=1)}
        views |= {heading: upscale_rgb(engine, low, None) for heading, engine in engines.items()}
        views["true"] = high
        side = min(_SIDE, *high.shape[:2])
        errors = [_errors(views[heading], high, side) for heading in engines]
        losses = np.max(errors[1:], axis=0) - errors[0]
        for flat in np.argsort(-losses, axis=None, kind="stable")[:count]:
            row, column = divmod(int(flat), losses.shape[1])
            rows, columns = (slice(start * side, (start + 1) * side) for start in (row, column))
            patch = {heading: view[rows, columns].copy() for heading, view in views.items()}
            found.append(Patch(pair.name, float(losses[row, column]), patch))
        found = sorted(found, key=lambda patch: -patch.loss)[:count]
    return found


def sheet(patches: Sequence[Patch]) -> Pixels:
    """All patches in one picture, a row each, under their headings; uint8 [H, W, 3]."""
    headings = list(patches[0].views)
    step = _SIDE * _ZOOM + _GAP
    image = Image.new("RGB", (step * len(headings) + _GAP, (step + _HEADING) * len(patches) + _HEADING + _GAP), "white")
    draw = ImageDraw.Draw(image)
    for column, heading in enumerate(headings):
        draw.text((_GAP + column * step, 2), heading, fill="black")
    for row, patch in enumerate(patches):
        top = _HEADING + row * (step + _HEADING)
        draw.text((_GAP, top + 2), f"{patch.picture}: squared error +{patch.loss:.1f}", fill="black")
        for column, heading in enumerate(headings):
            view = patch.views[heading].repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
            image.paste(Image.fromarray(view), (_GAP + column * step, top + _HEADING))
    return np.asarray(image)


def _errors(picture: Pixels, true: Pixels, side: int) -> np.ndarray:
    """Mean squared error of every patch that fits whole, float64 [rows, columns]."""
    rows, columns = (length // side for length in picture.shape[:2])
    square = (picture.astype(np.float64) - true)[: rows * side, : columns * side] ** 2
    return square.reshape(rows, side, columns, side, -1).mean((1, 3, 4))
