"""Decoded training pictures on disk: each file is decoded and shrunk once, then read as a memory map.

An entry is a NumPy file with four bytes behind it, the CRC-32 of the pixels. It is named after the picture's path,
size and time of change (and the scale), so that a changed picture gets a new entry. Entries appear whole or not at
all; one that is damaged anyway is made again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srquant.errors import UserError
from srquant.files import atomic_path
from srquant.imaging import crop_to_multiple, downscale, read_picture

Pixels = NDArray[np.uint8]

_TRAILER = 4
_STALE = 86_400.0
"""Seconds after which the temporary file of a killed writer is taken away."""


def default_folder() -> Path:
    """`srquant/pictures` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "srquant" / "pictures"


class UnreadablePictureError(UserError):
    """A training picture cannot be decoded; the message names it."""


@dataclass(frozen=True)
class Entry:
    """Where one picture is kept; fixed when the run starts, so the picture itself may go afterwards."""

    picture: Path
    high: Path
    low: Path
    scale: int


class PictureCache:
    """Pictures of one scale as HR and LR pixels.

    Args:
        folder: where the entries are kept; made if it is not there.
        scale: HR is cropped to a multiple of it, LR is made from HR by the protocol's bicubic.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, scale: int) -> None:
        self.folder, self.scale = folder, scale
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
        except OSError as error:
            raise UserError(f"cannot use '{folder}' as picture cache: {error.strerror}") from error

    def entry(self, picture: Path) -> Entry:
        """The entry of a picture, whether or not it is there yet.

        Raises:
            UnreadablePictureError: the picture is not there.
        """
        try:
            facts = picture.stat()
        except OSError as error:
            raise UnreadablePictureError(f"cannot read '{picture}': {error.strerror}") from error
        identity = f"{picture.absolute()}\0{facts.st_size}\0{facts.st_mtime_ns}"
        key = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
        return Entry(picture, self.folder / f"{key}.npy", self.folder / f"{key}-x{self.scale}.npy", self.scale)

    def size(self, entry: Entry) -> tuple[int, int]:
        """Height and width of the LR picture, from the cached file's head where it is there.

        Raises:
            UnreadablePictureError: the picture has to be decoded and cannot be.
            UserError: the cache cannot be written.
        """
        try:
            low, _ = _map(entry.low), _map(entry.high)
        except (OSError, ValueError, EOFError):
            low, _ = self._make(entry)
        return low.shape[0], low.shape[1]

    def load(self, entry: Entry) -> tuple[Pixels, Pixels]:
        """LR uint8 [h,w,3] and HR uint8 [s*h,s*w,3], memory maps whose content was checked.

        Raises:
            UnreadablePictureError: the entry is gone or damaged and so is the picture.
            UserError: the cache cannot be written.
        """
        try:
            return _checked(entry.low), self._cropped(_checked(entry.high))
        except (OSError, ValueError, EOFError):
            return self._make(entry)

    def _make(self, entry: Entry) -> tuple[Pixels, Pixels]:
        """Decode the picture, write both files and give the pixels."""
        high = _decode(entry.picture, self.scale)
        low = downscale(self._cropped(high), self.scale)
        for path, pixels in ((entry.high, high), (entry.low, low)):
            try:
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, pixels)
                    file.write(_checksum(pixels))
            except OSError as error:
                raise UserError(f"cannot write the picture cache '{self.folder}': {error.strerror}") from error
        return low, self._cropped(high)

    def _cropped(self, high: Pixels) -> Pixels:
        return crop_to_multiple(high, self.scale)


def _decode(path: Path, scale: int) -> Pixels:
    try:
        picture = read_picture(path)
    except UserError as error:
        raise UnreadablePictureError(str(error)) from error
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise UnreadablePictureError(f"'{path}' has transparent parts; a training picture must be opaque")
    height, width = picture.rgb.shape[:2]
    if min(height, width) < scale:
        raise UnreadablePictureError(f"'{path}' ({width}x{height}) is too small for scale {scale}")
    return np.ascontiguousarray(picture.rgb)


_HEADERS = threading.Lock()
"""NumPy reads a header by Python's parser, which Python 3.11 cannot run in two threads at once (SystemError)."""


def _map(path: Path) -> Pixels:
    """The pixels of an entry, unchecked; ValueError where it is no whole entry."""
    with _HEADERS:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    whole = isinstance(pixels, np.memmap) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    if not whole or path.stat().st_size != pixels.offset + pixels.nbytes + _TRAILER:
        raise ValueError(path)
    return pixels


def _checked(path: Path) -> Pixels:
    pixels = _map(path)
    with path.open("rb") as file:
        file.seek(-_TRAILER, os.SEEK_END)
        if file.read() != _checksum(pixels):
            raise ValueError(path)
    return pixels


def _checksum(pixels: Pixels) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels).data).to_bytes(_TRAILER, "little")


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".*.npy"):
        if time.time() - path.stat().st_mtime > _STALE:
            path.unlink(missing_ok=True)
