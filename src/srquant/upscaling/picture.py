"""Pictures enlarged with all that belongs to them: alpha, greyness, ICC profile and EXIF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from srquant.engines.base import Engine, Pixels
from srquant.imaging import Picture
from srquant.upscaling.colour import check_engine, upscale_rgb
from srquant.upscaling.tiles import Tile, count_tiles, upscale_pixels

_LUMA = (299, 587, 114)
"""BT.601 full-range luma, in thousandths."""

_MEAN = (1, 1, 1)

_BLEED = 16
"""How many pixels the colours of visible parts reach into fully transparent ones; beyond lies their mean."""


def count_runs(engine: Engine, picture: Picture, tile: Tile = "auto") -> int:
    """How many tiles `upscale_picture` runs for a picture, alpha included.

    Raises:
        UserError: as `upscale_pixels`.
    """
    height, width = picture.rgb.shape[:2]
    passes = 1 if picture.alpha is None or _constant(picture.alpha) else 2
    return passes * count_tiles(engine, height, width, tile)


def upscale_picture(
    engine: Engine, picture: Picture, tile: Tile = "auto", advance: Callable[[], None] | None = None
) -> Picture:
    """Enlarge a picture; see `upscale_pixels` for what `tile` does not change.

    Alpha is enlarged by the same network, as a grey picture; where it is the same all around a pixel it stays
    as it is, so that what was opaque does not become faintly transparent. Before that, the colours of fully
    transparent pixels are replaced by those of their visible neighbours: no dark fringe appears. A grey picture
    stays grey: a network for luma takes it as it is, of one for RGB the luma (BT.601) of the result is taken.

    Args:
        engine: runs a network for RGB or for luma; see `srquant.upscaling.colour`.
        picture: [H,W] pixels.
        tile: see `upscale_pixels`.
        advance: called after each tile, `count_runs` times in all.

    Returns:
        The picture of [scale*H, scale*W] pixels, with the ICC profile and EXIF of `picture`.

    Raises:
        UserError: the network takes another number of channels than 3 or 1, or `tile` is none that it can be run with.
    """
    check_engine(engine)
    rgb, alpha = picture.rgb, None
    if picture.alpha is not None:
        rgb = bleed(rgb, picture.alpha)
    if picture.grey:
        luma = upscale_pixels(_grey(engine, _LUMA), rgb[..., :1], tile, advance)
        enlarged = np.repeat(luma, 3, axis=2)
    else:
        enlarged = upscale_rgb(engine, rgb, tile, advance)
    if picture.alpha is not None:
        alpha = _upscale_alpha(engine, picture.alpha, tile, advance)
    return replace(picture, rgb=enlarged, alpha=alpha)


def bleed(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Give fully transparent pixels the colour of their visible neighbours.

    Args:
        rgb: uint8 [H,W,3].
        alpha: uint8 [H,W], 0 = transparent.

    Returns:
        uint8 [H,W,3]; `rgb` wherever alpha is above 0, and everywhere if it nowhere is.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return rgb
    known = np.concatenate([rgb, np.ones_like(rgb[..., :1])], axis=2).astype(np.uint16) * visible[..., None]
    for _ in range(_BLEED):
        sums = _sum_around(known)
        rim = (known[..., 3] == 0) & (sums[..., 3] > 0)
        if not rim.any():
            break
        count = sums[rim][:, 3:]
        known[rim] = (sums[rim] + count // 2) // count
    result = known[..., :3].astype(np.uint8)
    result[known[..., 3] == 0] = rgb[visible].mean(axis=0).round()
    return result


def _sum_around(values: np.ndarray) -> np.ndarray:
    """The sum over 3x3 pixels around each, zeros outside; uint16 [H,W,C] of at most 255 each, to the same."""
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _upscale_alpha(engine: Engine, alpha: Pixels, tile: Tile, advance: Callable[[], None] | None) -> Pixels:
    """uint8 [H,W] -> uint8 [scale*H, scale*W]."""
    scale = engine.info.scale
    if _constant(alpha):
        return np.full((alpha.shape[0] * scale, alpha.shape[1] * scale), alpha[0, 0], np.uint8)
    enlarged = upscale_pixels(_grey(engine, _MEAN), alpha[..., None], tile, advance)[..., 0]
    return np.where(_repeated(_flat(alpha), scale), _repeated(alpha, scale), enlarged)


def _constant(alpha: Pixels) -> bool:
    return bool((alpha == alpha[0, 0]).all())


def _flat(alpha: Pixels) -> np.ndarray:
    """Where all of the 3x3 pixels around are equal; bool [H,W]."""
    height, width = alpha.shape
    padded = np.pad(alpha, 1, mode="edge")
    flat = np.ones(alpha.shape, bool)
    for down in range(3):
        for right in range(3):
            flat &= padded[down : down + height, right : right + width] == alpha
    return flat


def _repeated(values: np.ndarray, scale: int) -> np.ndarray:
    return values.repeat(scale, axis=0).repeat(scale, axis=1)


def _grey(engine: Engine, weights: tuple[int, int, int]) -> Engine:
    """The engine as one for a single channel."""
    return engine if engine.info.channels == 1 else _GreyEngine(engine, weights)


class _GreyEngine:
    """A network for RGB as one for grey: takes uint8 [H,W,1], gives a weighted mean of the result's channels."""

    def __init__(self, engine: Engine, weights: tuple[int, int, int]) -> None:
        self.name = engine.name
        self.info = replace(engine.info, channels=1)
        self.halo = engine.halo
        self.shape = engine.shape
        self._engine = engine
        self._weights = np.array(weights, np.uint32)

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, 1] -> uint8 [scale*H, scale*W, 1], rounded half up."""
        total = self._weights.sum()
        mean = (self._engine.run(picture.repeat(3, axis=2)) @ self._weights + total // 2) // total
        return mean.astype(np.uint8)[..., None]

    def left_in_float(self) -> list[str]:
        """What the engine itself leaves in float."""
        return self._engine.left_in_float()
