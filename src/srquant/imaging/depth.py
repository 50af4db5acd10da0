"""Pictures with more than 8 bits per channel: found before Pillow narrows them, reduced by rounding."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from srquant.errors import UserError, missing_package
from srquant.imaging.metadata import ORIENTATION, upright

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TAG_BITS = 258
_TAG_PHOTOMETRIC = 262
_UNSIGNED = 1
_ASSOCIATED_ALPHA = 1


def channel_depth(file: BinaryIO) -> int:
    """Bits per channel as the header of a PNG or TIFF says; 8 for every other file.

    Pillow opens 16-bit colour as 8-bit without a word, so the header is read here. The position in `file`
    is put back to its start.
    """
    file.seek(0)
    head = file.read(32)
    depth = 8
    if head.startswith(_PNG) and head[12:16] == b"IHDR" and len(head) > 24:
        depth = head[24]
    elif head.startswith(_TIFF):
        directory = ImageFileDirectory_v2(head[: 16 if 43 in head[2:4] else 8])
        file.seek(directory.next)
        directory.load(file)
        bits: Any = directory.get(_TAG_BITS, 1)
        depth = int(max(bits) if isinstance(bits, tuple) else bits)
    file.seek(0)
    return depth


def reduced(image: Image.Image, file: BinaryIO, depth: int) -> np.ndarray:
    """The channels of a deep picture, uint8 [H,W,C] (C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA).

    A value v becomes v * 255 / (2**depth - 1), rounded half up. TIFF pixels come out upright, as from Pillow.
    Pillow decodes grey without alpha; the rest, which it would cut to the upper byte, imagecodecs (PNG) and
    tifffile (TIFF). `image` is loaded already: that is what refuses a file cut short.

    Raises:
        UserError: the samples are no unsigned integers, are premultiplied by alpha, count from white,
            or the package that decodes them is missing (extra `images`).
    """
    inverted = getattr(image, "tag_v2", {}).get(_TAG_PHOTOMETRIC) == 0  # white is 0: Pillow leaves it so
    if image.mode.startswith("I;16") and "transparency" not in image.info and not inverted:
        deep = np.asarray(image)
    else:
        deep = _png(file) if image.format == "PNG" else _tiff(file)
    top = 2**depth - 1
    flat = ((deep.astype(np.uint32) * 510 + top) // (2 * top)).astype(np.uint8)
    return flat[..., None] if flat.ndim == 2 else flat


def _png(file: BinaryIO) -> np.ndarray:
    try:
        import imagecodecs
    except ImportError as error:
        raise missing_package("imagecodecs", "reading 16-bit colour", "images") from error
    file.seek(0)
    return np.asarray(imagecodecs.png_decode(file.read()))


def _tiff(file: BinaryIO) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise missing_package("tifffile", "reading 16-bit colour", "images") from error
    file.seek(0)
    with tifffile.TiffFile(io.BytesIO(file.read())) as tiff:
        page: Any = tiff.pages[0]
        if page.sampleformat != _UNSIGNED or page.photometric.name not in ("MINISBLACK", "RGB"):
            raise UserError(f"{page.photometric.name} {page.dtype} samples cannot be reduced to 8 bits")
        if _ASSOCIATED_ALPHA in page.extrasamples:
            raise UserError("colour premultiplied by alpha cannot be reduced to 8 bits")
        pixels = np.asarray(page.asarray())
        if pixels.ndim == 3 and page.planarconfig.name == "SEPARATE":
            pixels = np.moveaxis(pixels, 0, 2)
        return upright(pixels, page.tags.valueof(ORIENTATION, 1))
