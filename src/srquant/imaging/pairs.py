"""Benchmark sets: high-resolution (HR) pictures and their low-resolution (LR) partners, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srquant.errors import UserError
from srquant.imaging.picture import find_pictures, read_picture
from srquant.imaging.resize import check_scale, crop_to_multiple, downscale


@dataclass(frozen=True)
class Pair:
    """One picture of a benchmark set.

    Attributes:
        name: the name of the HR file without its suffix.
        hr: the high-resolution file.
        lr: the low-resolution file; None has it made from `hr` by MATLAB-compatible bicubic.
    """

    name: str
    hr: Path
    lr: Path | None

    def load(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """The LR picture uint8 [H,W,3] and the HR picture uint8 [H*scale,W*scale,3], both 0..255 RGB.

        HR is cropped at the right and lower edge to a multiple of `scale`; grey is held three times.

        Raises:
            UserError: a file cannot be read, has transparent parts, HR is smaller than `scale`, or LR is not
                HR // scale in size.
        """
        check_scale(scale)
        full = _opaque(self.hr)
        height, width = full.shape[0] // scale, full.shape[1] // scale
        if min(height, width) < 1:
            raise UserError(f"'{self.hr}' ({_size(full)}) is too small for scale {scale}")
        hr = np.ascontiguousarray(crop_to_multiple(full, scale))
        if self.lr is None:
            return downscale(hr, scale), hr
        lr = _opaque(self.lr)
        if lr.shape[:2] != (height, width):
            raise UserError(
                f"'{self.lr}' is {_size(lr)}, but '{self.hr}' ({_size(full)}) needs {width}x{height} at x{scale}"
            )
        return lr, hr


@dataclass(frozen=True)
class BenchmarkSet:
    """A named set of pairs, sorted by file name; never empty."""

    name: str
    pairs: tuple[Pair, ...]


def open_set(folder: Path, scale: int) -> BenchmarkSet:
    """Find the pairs of a benchmark set; no pixel is read yet.

    `folder` holds `HR/`, is itself called `HR`, or is a plain folder of HR pictures. If `LR/x{scale}/` or
    `LR_bicubic/X{scale}/` lies beside `HR`, the LR pictures come from there, paired by the name of the HR
    file with or without `x{scale}` behind it; otherwise they are made from HR. The set is named after its
    folder.

    Raises:
        UserError: no such folder, no pictures, two HR files of one name, or an HR or LR file without its
            one partner; the message names it.
    """
    check_scale(scale)
    if folder.name in ("", ".."):
        folder = folder.resolve()
    root = folder.parent if folder.name == "HR" else folder
    beside = folder.name == "HR" or (folder / "HR").is_dir()
    files = _by_name(root / "HR" if beside else folder)
    lr_folder = _lr_folder(root, scale) if beside else None
    partners = _partners(files, lr_folder, scale) if lr_folder else {}
    return BenchmarkSet(
        root.name or root.resolve().name,
        tuple(Pair(stem, hr, partners.get(stem)) for stem, hr in files.items()),
    )


def _lr_folder(root: Path, scale: int) -> Path | None:
    for candidate in (root / "LR" / f"x{scale}", root / "LR_bicubic" / f"X{scale}"):
        if candidate.is_dir():
            return candidate
    return None


def _by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their name without suffix, in order of file name."""
    files: dict[str, Path] = {}
    for path in find_pictures(folder):
        if path.stem in files:
            raise UserError(f"'{path}' and '{files[path.stem].name}' have the same name; keep one")
        files[path.stem] = path
    return files


def _partners(files: dict[str, Path], folder: Path, scale: int) -> dict[str, Path]:
    candidates = _by_name(folder)
    partners: dict[str, Path] = {}
    for stem, hr in files.items():
        found = next((name for name in (stem, f"{stem}x{scale}") if name in candidates), None)
        if found is None:
            raise UserError(f"'{hr}' has no partner '{stem}' or '{stem}x{scale}' in '{folder}'")
        partners[stem] = candidates.pop(found)
    if candidates:
        surplus = next(iter(candidates.values()))
        raise UserError(f"'{surplus}' has no partner in '{next(iter(files.values())).parent}'")
    return partners


def _opaque(path: Path) -> np.ndarray:
    picture = read_picture(path)
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise UserError(f"'{path}' has transparent parts; a benchmark picture must be opaque")
    return picture.rgb


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
