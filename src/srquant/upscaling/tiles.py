"""Exact tiles: a large picture enlarged piece by piece, with the very pixels of one run over the whole.

Every piece is run together with a halo of real neighbours, as wide as the network looks, and cropped afterwards.
At the picture's edge the piece ends where the picture ends, so that the network's own padding acts as on the
whole picture. Memory follows the tile, not the picture; only the result grows with it.

An engine of a fixed shape, such as a LiteRT file, gets windows of just that shape. A picture that is smaller is
mirrored up to it and the result cropped: its last `halo` rows or columns then see mirrored neighbours where they
would have seen the network's own padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from srquant.engines.base import Engine, Pixels
from srquant.errors import UserError

Tile: TypeAlias = int | Literal["auto"] | None
"""Largest side of a tile in low-resolution pixels, without its halo; None for whole pictures."""

_AUTO_SIDE = 1024
"""Side of the enlarged square, halo included, that one run makes at most when the tile is "auto".

Measured with an int8 EDSR (8 blocks, 64 features, x2) from 1920x1080 to 3840x2160, whole process on one thread:
OpenVINO and torch stay within 0.5 GiB.
"""

_AUTO_SIDES = {"onnxruntime": 640}
"""Engines that need another side: ONNX Runtime unfolds the input of every int8 convolution, kernel by kernel."""


@dataclass(frozen=True)
class _Span:
    """One piece of one axis: keep `start..stop` of what a run over `first..last` gives; all in LR pixels."""

    start: int
    stop: int
    first: int
    last: int


def check_tile(engine: Engine, tile: Tile) -> None:
    """Refuse a tile that is none, or that the engine's network cannot be run with.

    Raises:
        UserError: `tile` is neither a whole number above 0, "auto" nor None, or it is a number and the network
            looks at the whole picture, or it is a number and the engine takes one shape only.
    """
    if engine.shape is not None and not (tile is None or tile == "auto"):
        raise UserError(
            f"'{engine.name}' takes tiles of {_size(engine.shape)} only: tile has to be 'auto', "
            "or whole (None in Python) for pictures of just that size"
        )
    if tile is None or (isinstance(tile, str) and tile == "auto"):
        return
    if isinstance(tile, bool) or not isinstance(tile, (int, np.integer)) or tile < 1:
        raise UserError(f"tile is {tile!r}; allowed: a whole number of 1 or more, 'auto', or whole (None in Python)")
    if engine.halo is None:
        raise UserError(
            f"'{engine.info.name}' cannot be run in tiles of {tile}: the network looks at the whole picture "
            "(channel attention, or gates that choose scales); allowed: 'auto' or None, which run it whole"
        )


def count_tiles(engine: Engine, height: int, width: int, tile: Tile) -> int:
    """How many runs `upscale_pixels` needs for a picture of height x width LR pixels.

    Raises:
        UserError: as `check_tile`, or `tile` is None and the engine takes pictures of another shape only.
    """
    rows, columns = _plan(engine, height, width, tile)
    return len(rows) * len(columns)


def upscale_pixels(
    engine: Engine, picture: Pixels, tile: Tile = "auto", advance: Callable[[], None] | None = None
) -> Pixels:
    """Enlarge pixels; integer engines give the same pixels for every `tile`, float ones may round a value otherwise.

    Args:
        engine: runs the model.
        picture: uint8 [H,W,C], 0..255, C as the engine takes.
        tile: largest side of a tile; the tiles of a picture have one size, so that a runtime plans it once.
            "auto" runs small pictures, and networks that look at the whole picture, in one piece; an engine of a
            fixed shape gets windows of that.
        advance: called after each tile.

    Returns:
        uint8 [scale*H, scale*W, C].

    Raises:
        UserError: as `count_tiles`, `picture` is no such array, or it has not the shape that an engine needs whose
            network looks at the whole picture.
    """
    channels = engine.info.channels
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.size == 0 or picture.shape[2] != channels:
        raise UserError(f"expected uint8 pixels [H,W,{channels}], got {picture.dtype} {list(picture.shape)}")
    height, width = picture.shape[:2]
    scale = engine.info.scale
    rows, columns = _plan(engine, height, width, tile)
    padded = _padded(picture, engine)
    result = np.empty((height * scale, width * scale, channels), np.uint8)
    for row in rows:
        for column in columns:
            window = np.ascontiguousarray(padded[row.first : row.last, column.first : column.last])
            enlarged = engine.run(window)
            result[_scaled(row, scale), _scaled(column, scale)] = enlarged[_inside(row, scale), _inside(column, scale)]
            del enlarged  # freed before the next run, not after
            if advance is not None:
                advance()
    return result


def _plan(engine: Engine, height: int, width: int, tile: Tile) -> tuple[list[_Span], list[_Span]]:
    """The pieces of the rows and of the columns."""
    check_tile(engine, tile)
    if engine.shape is not None:
        if tile is None and (height, width) != engine.shape:
            raise UserError(
                f"'{engine.name}' takes pictures of {_size(engine.shape)} only, {_size((height, width))} is not taken "
                "as a whole: tile has to be 'auto'"
            )
        return _fixed_plan(engine, engine.shape, height, width)
    side = _automatic(engine, height, width) if tile == "auto" else tile
    multiple, halo = engine.info.size_multiple, engine.halo or 0
    return (
        list(_spans(height, side or height, halo, multiple)),
        list(_spans(width, side or width, halo, multiple)),
    )


def is_mirrored(engine: Engine, height: int, width: int) -> bool:
    """Whether a picture is smaller than the one shape that an engine takes, and so is mirrored up to it."""
    return engine.shape is not None and (height < engine.shape[0] or width < engine.shape[1])


def _fixed_plan(engine: Engine, shape: tuple[int, int], height: int, width: int) -> tuple[list[_Span], list[_Span]]:
    """The pieces of an engine that takes windows of one shape."""
    if engine.halo is None and (height, width) != shape:
        raise UserError(
            f"'{engine.info.name}' looks at the whole picture, and this file takes {_size(shape)} only; "
            f"export it with --shape {_size((height, width))}"
        )
    multiple = engine.info.size_multiple
    margin = _rounded_up(engine.halo or 0, multiple)
    plans = []
    for length, window in zip((height, width), shape, strict=True):
        if length > window and window <= 2 * margin:
            raise UserError(
                f"windows of {_size(shape)} are all halo, {margin} pixels on every side; "
                f"export '{engine.info.name}' with a --shape of more than {2 * margin} pixels"
            )
        plans.append(list(_fixed_spans(length, window, margin, multiple)))
    return plans[0], plans[1]


def _fixed_spans(length: int, window: int, margin: int, multiple: int) -> Iterator[_Span]:
    """Cut one axis into pieces whose windows have one given length and stay inside the picture where it is longer."""
    end = max(_rounded_up(length, multiple), window)
    start = 0
    while start < length:
        first = 0 if start == 0 else min(start - margin, end - window)
        stop = length if first + window >= end else first + window - margin
        yield _Span(start, stop, first, first + window)
        start = stop


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _automatic(engine: Engine, height: int, width: int) -> int | None:
    """The tile side for a picture, None to run it whole."""
    window = _AUTO_SIDES.get(engine.name, _AUTO_SIDE) // engine.info.scale
    if engine.halo is None or height * width <= window**2:
        return None
    return max(window - 2 * engine.halo, engine.halo)  # a run is never more than 3 x 3 tiles large


def _spans(length: int, tile: int, halo: int, multiple: int) -> Iterator[_Span]:
    """Cut one axis into equal pieces of at most `tile` (rounded up to `multiple`) with windows of one length.

    A window that would leave the picture is shifted inside: it then has more than the halo on its other side.
    """
    end = _rounded_up(length, multiple)
    pieces = -(-length // _rounded_up(tile, multiple))
    core = _rounded_up(-(-length // pieces), multiple)
    margin = _rounded_up(halo, multiple)
    window = min(end, core + 2 * margin)
    for start in range(0, length, core):
        first = max(0, min(start - margin, end - window))
        yield _Span(start, min(start + core, length), first, first + window)


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _padded(picture: Pixels, engine: Engine) -> Pixels:
    """The picture, its last row and column repeated up to the sizes that the network takes, then mirrored."""
    height, width = picture.shape[:2]
    multiple, (least_height, least_width) = engine.info.size_multiple, engine.shape or (0, 0)
    picture = _grown(picture, -height % multiple, -width % multiple, "edge")
    height, width = picture.shape[:2]
    return _grown(picture, max(least_height - height, 0), max(least_width - width, 0), "symmetric")


def _grown(picture: Pixels, bottom: int, right: int, mode: Literal["edge", "symmetric"]) -> Pixels:
    return np.pad(picture, ((0, bottom), (0, right), (0, 0)), mode=mode) if bottom or right else picture


def _scaled(span: _Span, scale: int) -> slice:
    """Where a piece lies in the whole result."""
    return slice(span.start * scale, span.stop * scale)


def _inside(span: _Span, scale: int) -> slice:
    """Where a piece lies in the result of its window."""
    return slice((span.start - span.first) * scale, (span.stop - span.first) * scale)
