"""EXIF of a picture: which way is up, and the block that may go along with the turned pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
_EXIF_IFD = 0x8769
_SIZE_TAGS = (0xA002, 0xA003)
# Tags of a TIFF or EXIF block that describe how its own pixels are stored, not what they show.
_LAYOUT_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, ORIENTATION, 277, 278, 279, 280, 281, 284}
    | {317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 338, 339, 340, 341, 347, 529, 530, 531, 532}
    | {700, 33723, 34377, 34675}
)
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels [H,W,...] by the EXIF orientation 1..8 (tag 0x0112); any other value leaves them."""
    turn = _TURNS.get(orientation)
    return turn(pixels) if turn else pixels


def orientation_of(image: Image.Image) -> int:
    """The orientation of a loaded image: 1 when it has none, or when Pillow has turned it (TIFF)."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF: the pixels stay as they are stored
        return 1


def portable_exif(image: Image.Image) -> bytes | None:
    """The EXIF block without orientation, size and storage of the pixels; None if it is absent or broken.

    Must be called while the file of `image` is open.
    """
    try:
        exif = image.getexif()
        for tag in _LAYOUT_TAGS.intersection(exif):
            del exif[tag]
        if _EXIF_IFD in exif:
            for tag in _SIZE_TAGS:
                exif.get_ifd(_EXIF_IFD).pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # bad metadata never costs the picture
        return None
