"""Picture files in and out: upright 8-bit pixels with alpha, ICC profile and EXIF; never half a picture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from srquant.errors import DepthError, UserError
from srquant.files import atomic_path
from srquant.imaging.depth import channel_depth, reduced
from srquant.imaging.metadata import orientation_of, portable_exif, upright


class _Format(NamedTuple):
    """What a file format can hold."""

    name: str
    alpha: bool
    metadata: bool
    longest_side: int
    options: dict[str, Any]


_PNG = _Format("PNG", True, True, 2**31 - 1, {})
_JPEG = _Format("JPEG", False, True, 65500, {"subsampling": 0})
_WEBP = _Format("WEBP", True, True, 16383, {"lossless": True, "exact": True})
_TIFF = _Format("TIFF", True, True, 2**31 - 1, {"compression": "raw"})  # Pillow drops EXIF from compressed TIFF
_BMP = _Format("BMP", False, False, 2**31 - 1, {})
_FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _BMP,
}

PICTURE_SUFFIXES: tuple[str, ...] = tuple(_FORMATS)
"""The endings of the files that `read_picture` and `write_picture` know, in lower case."""

_KNOWN = "PNG, JPEG, WebP, TIFF, BMP"


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture, upright, 8 bits per channel.

    Attributes:
        rgb: uint8 [H,W,3], 0..255; a grey picture holds its values three times.
        alpha: uint8 [H,W], 0 = transparent, not premultiplied; None where the file has none.
        grey: the file was grey; it is written as grey again.
        icc: the ICC profile of the pixels, as stored.
        exif: the EXIF block without its orientation (the pixels are turned already) and pixel layout.

    Raises:
        UserError: `rgb` or `alpha` has another shape or type, or there is no pixel.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None

    def __post_init__(self) -> None:
        shape = self.rgb.shape
        if self.rgb.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or self.rgb.size == 0:
            raise UserError(f"a picture needs uint8 [H,W,3] pixels, got {self.rgb.dtype} {list(shape)}")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != shape[:2]):
            raise UserError(f"alpha must be uint8 {list(shape[:2])}, got {self.alpha.dtype} {list(self.alpha.shape)}")


def read_picture(path: Path, *, reduce_depth: bool = False) -> Picture:
    """Decode a PNG, JPEG, WebP, TIFF or BMP file, recognised by its content.

    Palettes are resolved, CMYK is converted by Pillow's plain formula (its profile is dropped, since it does
    not describe RGB), the EXIF orientation is applied. Of a multi-picture JPEG, as phones write, the photo
    itself is taken, not the previews behind it. Unreadable metadata is dropped.

    Args:
        path: the file.
        reduce_depth: round 9 to 16-bit channels to 8 bit, v * 255 / (2**depth - 1), instead of refusing them.

    Raises:
        UserError: the file is missing, a folder, empty, no picture of a known format, damaged or cut short,
            animated or of several pages, or too large.
        DepthError: it is deeper than 8 bits, and `reduce_depth` would help.
    """
    with _one_line_errors(path), path.open("rb") as file:
        if not file.read(1):
            raise UserError(f"'{path}' is empty, not a picture")
        depth = channel_depth(file)
        if depth > (16 if reduce_depth else 8):
            kind = DepthError if depth <= 16 else UserError
            raise kind(f"'{path}' has {depth} bits per channel, allowed are 8: convert it to 8 bit")
        with Image.open(file, formats=("PNG", "JPEG", "WEBP", "TIFF", "BMP")) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise UserError(f"'{path}' holds {frames} frames; only single pictures are taken")
            image.load()
            pixels = reduced(image, file, depth) if depth > 8 else _channels(image)
            pixels = upright(pixels, orientation_of(image))
            icc = None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile")
            exif = portable_exif(image)
    return _assemble(pixels, icc or None, exif)


def write_picture(path: Path, picture: Picture, *, quality: int = 95, keep_metadata: bool = True) -> None:
    """Write a picture in the format that the suffix of `path` names; the file appears whole or not at all.

    PNG, WebP (always lossless), TIFF (uncompressed) and BMP keep every value; JPEG is written without
    chroma subsampling. A grey picture becomes a grey file; WebP, which knows only colour, gives it back as
    colour, and leaves out an alpha that is opaque everywhere. ICC and EXIF go along where the format holds
    them (not BMP); metadata that the format refuses is left out.

    Args:
        path: the file to write; its folder exists.
        picture: the pixels and what belongs to them.
        quality: of JPEG, 1..100.
        keep_metadata: False leaves ICC and EXIF out.

    Raises:
        UserError: unknown suffix, alpha in a format without it, a side too long for the format, a `quality`
            out of range, or the file cannot be written.
    """
    form = _format_of(path)
    if not 1 <= quality <= 100:
        raise UserError(f"quality {quality} is not within 1..100")
    if picture.alpha is not None and not form.alpha:
        raise UserError(f"cannot write '{path}': {form.name} holds no alpha; .png, .webp and .tiff do")
    if max(picture.rgb.shape) > form.longest_side:
        height, width = picture.rgb.shape[:2]
        raise UserError(
            f"cannot write '{path}': {width}x{height} is too large for {form.name}, whose sides end at "
            f"{form.longest_side}; .png and .tiff hold it"
        )
    options = form.options | ({"quality": quality} if form is _JPEG else {})
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _save(path, temporary, _image(picture), form, options, _metadata(picture, form, keep_metadata))


def find_pictures(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, by suffix, sorted by name; hidden files are passed over.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder" if folder.exists() else f"there is no folder '{folder}'")
    pictures = sorted(
        (
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _FORMATS and not path.name.startswith(".") and path.is_file()
        ),
        key=lambda path: path.name,
    )
    if not pictures:
        raise UserError(f"no pictures in '{folder}'; known: {', '.join(PICTURE_SUFFIXES)}")
    return pictures


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn whatever a decoder says about untrusted bytes into one line about `path`; let no warning out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except MemoryError:
        raise
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"cannot read '{path}': {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"there is no picture '{path}'") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a folder, not a picture") from error
    except PermissionError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"'{path}' is no readable picture; known formats: {_KNOWN}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = re.search(r"\d+", str(error))
        raise UserError(
            f"'{path}' is too large: {size.group() if size else 'its'} pixels, allowed {Image.MAX_IMAGE_PIXELS}"
        ) from error
    except Exception as error:  # decoders raise nearly everything on damaged bytes
        raise UserError(f"cannot read '{path}', it is damaged or cut short: {_one_line(error)}") from error


def _channels(image: Image.Image) -> np.ndarray:
    """The pixels of an 8-bit image as uint8 [H,W,C]: C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"pixels of Pillow's mode {image.mode} are deeper than 8 bits per channel")
    alpha = image.has_transparency_data
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _assemble(pixels: np.ndarray, icc: bytes | None, exif: bytes | None) -> Picture:
    channels = pixels.shape[2]
    grey = channels < 3
    colour = np.repeat(pixels[..., :1], 3, axis=2) if grey else pixels[..., :3]
    alpha = pixels[..., -1].copy() if channels in (2, 4) else None
    return Picture(np.ascontiguousarray(colour), alpha, grey, icc, exif)


def _format_of(path: Path) -> _Format:
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise UserError(
            f"cannot write '{path}': unknown suffix '{path.suffix}'; allowed: {', '.join(PICTURE_SUFFIXES)}"
        )
    return form


def _image(picture: Picture) -> Image.Image:
    """The picture as a Pillow image of mode L, LA, RGB or RGBA."""
    colour = picture.rgb
    if picture.grey:  # the mean, should the three channels have drifted apart
        total = colour.sum(axis=2, keepdims=True, dtype=np.uint16)
        colour = ((total + 1) // 3).astype(np.uint8)
    if picture.alpha is not None:
        colour = np.concatenate([colour, picture.alpha[..., None]], axis=2)
    return Image.fromarray(np.ascontiguousarray(colour.squeeze(2) if colour.shape[2] == 1 else colour))


def _metadata(picture: Picture, form: _Format, keep: bool) -> list[dict[str, bytes]]:
    """What to try to write beside the pixels, the fullest first; the last is always nothing."""
    if not (keep and form.metadata):
        return [{}]
    icc = {"icc_profile": picture.icc} if picture.icc else {}
    exif = {"exif": picture.exif} if picture.exif else {}
    return [icc | exif, icc, exif, {}]


def _save(
    path: Path,
    temporary: Path,
    image: Image.Image,
    form: _Format,
    options: dict[str, Any],
    metadata: list[dict[str, bytes]],
) -> None:
    failure: Exception | None = None
    for extra in metadata:
        try:
            image.save(temporary, format=form.name, **options, **extra)
            return
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises nearly everything on broken metadata
            failure = error
    raise UserError(f"cannot write '{path}': {_one_line(failure)}") from failure


def _one_line(error: Exception | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__
