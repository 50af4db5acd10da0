"""The colour route: an RGB picture through a network for RGB, or through one that takes luma alone.

For the latter the picture is split into Y, Cb and Cr (BT.601, full range). Y goes through the network; Cb and Cr,
in which the eye sees little detail, are enlarged by the protocol's bicubic; all three become RGB again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srquant.engines.base import Engine, Pixels
from srquant.errors import UserError
from srquant.imaging import upscale
from srquant.imaging.colour import to_rgb, to_ycbcr
from srquant.upscaling.tiles import Tile, upscale_pixels


def check_engine(engine: Engine) -> None:
    """Refuse an engine whose network takes neither RGB nor luma.

    Raises:
        UserError: it takes another number of channels than 3 or 1.
    """
    channels = engine.info.channels
    if channels not in (1, 3):
        raise UserError(
            f"'{engine.info.name}' takes pictures of {channels} channels; allowed are networks for 3 (RGB) or 1 (luma)"
        )


def upscale_rgb(
    engine: Engine, picture: Pixels, tile: Tile = "auto", advance: Callable[[], None] | None = None
) -> Pixels:
    """Enlarge an RGB picture, whichever colours the network takes.

    Args:
        engine: runs a network for RGB or for luma.
        picture: uint8 [H,W,3], 0..255.
        tile: see `upscale_pixels`; bicubic is always done on the whole.
        advance: called after each tile.

    Returns:
        uint8 [scale*H, scale*W, 3].

    Raises:
        UserError: the network takes another number of channels than 3 or 1, or as `upscale_pixels`.
    """
    check_engine(engine)
    if engine.info.channels == 3:
        return upscale_pixels(engine, picture, tile, advance)
    planes = to_ycbcr(picture)
    enlarged = [upscale_pixels(engine, planes[..., :1], tile, advance)[..., 0]]
    enlarged += [upscale(planes[..., channel], engine.info.scale) for channel in (1, 2)]
    return to_rgb(np.stack(enlarged, axis=-1))
