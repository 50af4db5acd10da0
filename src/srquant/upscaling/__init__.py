"""The upscaler: any picture, any size, with the pixels of one run over the whole."""

from __future__ import annotations

from srquant.upscaling.colour import upscale_rgb
from srquant.upscaling.files import upscale_path
from srquant.upscaling.picture import count_runs, upscale_picture
from srquant.upscaling.tiles import Tile, check_tile, count_tiles, upscale_pixels

__all__ = [
    "Tile",
    "check_tile",
    "count_runs",
    "count_tiles",
    "upscale_path",
    "upscale_picture",
    "upscale_pixels",
    "upscale_rgb",
]
