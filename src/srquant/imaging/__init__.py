"""Pictures: files in and out, MATLAB-compatible resize, checked benchmark pairs."""

from srquant.imaging.pairs import BenchmarkSet, Pair, open_set
from srquant.imaging.picture import PICTURE_SUFFIXES, Picture, find_pictures, read_picture, write_picture
from srquant.imaging.resize import crop_to_multiple, downscale, upscale

__all__ = [
    "PICTURE_SUFFIXES",
    "BenchmarkSet",
    "Pair",
    "Picture",
    "crop_to_multiple",
    "downscale",
    "find_pictures",
    "open_set",
    "read_picture",
    "upscale",
    "write_picture",
]
