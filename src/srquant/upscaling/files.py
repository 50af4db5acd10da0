"""Picture files and folders of them, enlarged: nothing overwritten unasked, nothing half-written, resumable."""

from __future__ import annotations

import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srquant.engines.base import Engine
from srquant.errors import DepthError, UserError, unknown
from srquant.imaging import PICTURE_SUFFIXES, Picture, find_pictures, read_picture, write_picture
from srquant.progress import Progress, Silent
from srquant.upscaling.colour import check_engine
from srquant.upscaling.picture import count_runs, upscale_picture
from srquant.upscaling.tiles import Tile, check_tile, is_mirrored

_FIELDS = ("name", "scale", "suffix")


@dataclass(frozen=True)
class _Writing:
    """How files are read and written: the options of `read_picture` and `write_picture`."""

    reduce_depth: bool
    quality: int
    keep_metadata: bool


def upscale_path(
    engine: Engine,
    source: Path,
    target: Path,
    *,
    tile: Tile = "auto",
    pattern: str = "{name}_x{scale}{suffix}",
    suffix: str | None = None,
    overwrite: bool = False,
    reduce_depth: bool = False,
    quality: int = 95,
    keep_metadata: bool = True,
    progress: Progress | None = None,
) -> list[Path]:
    """Enlarge a picture file, or all pictures directly in a folder.

    A file goes to a file, or into a folder that is there. A folder goes to a folder, which is made if it is
    missing; pictures whose result is there already are passed over, so that a broken-off job goes on where it
    stopped. Every file appears whole or not at all.

    Args:
        engine: runs a network for RGB or for luma.
        source: a picture or a folder.
        target: a file with a picture suffix, or a folder.
        tile: see `upscale_pixels`.
        pattern: name of a result in a folder; fields {name} (of the source, without suffix), {scale}, {suffix}.
        suffix: of the results, one of `PICTURE_SUFFIXES`; None keeps the source's.
        overwrite: replace results that are there already.
        reduce_depth: round pictures of up to 16 bits per channel to 8, instead of refusing them.
        quality: of JPEG, 1..100.
        keep_metadata: carry ICC and EXIF along.
        progress: told about every picture and tile; nothing is printed.

    Returns:
        The files written, in the order of their sources' names.

    Raises:
        UserError: a path that does not fit the other, a result that is there already (file) or wanted by two
            sources (folder), an unknown field or suffix, a tile or network that cannot be run, or a picture that
            cannot be read or written. In a folder such pictures are left out and told of after the others are
            done: how many, and the first.
    """
    check_engine(engine)
    check_tile(engine, tile)
    _check_pattern(pattern)
    if suffix is not None and suffix not in PICTURE_SUFFIXES:
        raise unknown("picture suffix", suffix, PICTURE_SUFFIXES)
    writing = _Writing(reduce_depth, quality, keep_metadata)
    shown = progress or Silent()
    scale = engine.info.scale
    if not source.is_dir():
        if not source.exists():
            raise UserError(f"there is no picture '{source}'")
        result = _single_target(source, target, pattern, suffix, scale, overwrite=overwrite)
        _upscale_file(engine, _prepare(source, result, scale, writing), result, source.name, tile, writing, shown)
        return [result]
    jobs = _folder_jobs(source, target, pattern, suffix, scale)
    return _upscale_folder(engine, jobs, tile, writing, shown, overwrite=overwrite)


def _upscale_folder(
    engine: Engine,
    jobs: dict[Path, Path],
    tile: Tile,
    writing: _Writing,
    progress: Progress,
    *,
    overwrite: bool,
) -> list[Path]:
    written: list[Path] = []
    failures: list[str] = []
    for source, result in jobs.items():
        if result.exists() and not overwrite:
            continue
        try:
            picture = _prepare(source, result, engine.info.scale, writing)
            _upscale_file(engine, picture, result, source.name, tile, writing, progress)
        except UserError as error:
            failures.append(str(error))
        else:
            written.append(result)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(jobs)} pictures could not be enlarged, the others are done; "
            f"the first: {failures[0]}"
        )
    return written


def _upscale_file(
    engine: Engine,
    picture: Picture,
    result: Path,
    name: str,
    tile: Tile,
    writing: _Writing,
    progress: Progress,
) -> None:
    if is_mirrored(engine, *picture.rgb.shape[:2]):
        progress.warn(f"{name}: smaller than the engine's shape, so mirrored at the right or the bottom")
    progress.start(name, count_runs(engine, picture, tile))
    try:
        enlarged = upscale_picture(engine, picture, tile, progress.advance)
        write_picture(result, enlarged, quality=writing.quality, keep_metadata=writing.keep_metadata)
    finally:
        progress.finish()


def _prepare(source: Path, result: Path, scale: int, writing: _Writing) -> Picture:
    """Read a picture and make sure that its enlargement can be written, before any time is spent on it."""
    try:
        picture = read_picture(source, reduce_depth=writing.reduce_depth)
    except DepthError as error:
        raise UserError(f"{error}, or have it rounded: --to-8bit (in Python reduce_depth)") from error
    _rehearse(result, picture, scale, writing.quality)
    return picture


def _rehearse(result: Path, picture: Picture, scale: int, quality: int) -> None:
    """Write one row or column, as long as the longer side, beside `result` and drop it again.

    Raises:
        UserError: what `write_picture` would say after the enlarging.
    """
    height, width = picture.rgb.shape[:2]
    shape = (1, width * scale) if width >= height else (height * scale, 1)
    alpha = None if picture.alpha is None else np.zeros(shape, np.uint8)
    line = Picture(np.zeros((*shape, 3), np.uint8), alpha, picture.grey)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=result.parent) as folder:
            trial = Path(folder) / result.name
            try:
                write_picture(trial, line, quality=quality)
            except UserError as error:
                raise UserError(str(error).replace(str(trial), str(result))) from error
    except FileNotFoundError as error:
        why = "is not writable" if result.parent.is_dir() else "does not exist"
        raise UserError(f"cannot write '{result}': the folder '{result.parent}' {why}") from error
    except OSError as error:
        raise UserError(f"cannot write '{result}': {error.strerror}") from error


def _single_target(
    source: Path, target: Path, pattern: str, suffix: str | None, scale: int, *, overwrite: bool
) -> Path:
    """The file that one picture goes to."""
    if target.is_dir():
        result = target / _result_name(source, pattern, suffix, scale)
    elif target.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(
            f"'{target}' is neither a folder that is there nor a picture; known suffixes: {', '.join(PICTURE_SUFFIXES)}"
        )
    elif suffix is not None and target.suffix.lower() != suffix:
        raise UserError(f"the target '{target}' does not end in the suffix '{suffix}' that was asked for")
    else:
        result = target
    if result.exists() and result.samefile(source):
        raise UserError(f"the target '{result}' is the source itself")
    if result.exists() and not overwrite:
        raise UserError(f"'{result}' exists already; overwrite replaces it")
    return result


def _folder_jobs(source: Path, target: Path, pattern: str, suffix: str | None, scale: int) -> dict[Path, Path]:
    """The result of every picture in `source`; makes the folder `target` once nothing is wrong."""
    if target.exists() and not target.is_dir():
        raise UserError(f"'{source}' is a folder, so the target has to be one; '{target}' is a file")
    if not target.exists() and target.suffix.lower() in PICTURE_SUFFIXES:
        raise UserError(f"'{source}' is a folder, so the target has to be one; '{target}' names a picture")
    if target.exists() and target.samefile(source):
        raise UserError(f"the target '{target}' is the source folder itself")
    jobs: dict[Path, Path] = {}
    taken: dict[str, Path] = {}  # some file systems do not tell upper from lower case
    for picture in find_pictures(source):
        name = _result_name(picture, pattern, suffix, scale)
        other = taken.setdefault(name.casefold(), picture)
        if other is not picture:
            raise UserError(f"'{other}' and '{picture}' would both become '{target / name}'")
        jobs[picture] = target / name
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{target}': {error.strerror}") from error
    return jobs


def _check_pattern(pattern: str) -> None:
    """Refuse a pattern with unknown fields, formats or broken braces."""
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise UserError(f"pattern '{pattern}' is broken: {error}") from error
    for _, field, form, conversion in parts:
        if field is None:
            continue
        if field not in _FIELDS:
            raise unknown("field of the pattern", field, _FIELDS)
        if form or conversion:
            raise UserError(f"pattern '{pattern}': the field {{{field}}} takes no format")


def _result_name(source: Path, pattern: str, suffix: str | None, scale: int) -> str:
    """The name of a result in a folder.

    Raises:
        UserError: `pattern` gives no plain file name with a picture suffix.
    """
    name = pattern.format(name=source.stem, scale=scale, suffix=suffix or source.suffix)
    if Path(name).name != name or "\\" in name or Path(name).suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(
            f"pattern '{pattern}' makes '{name}' of '{source.name}'; it has to be a file name that ends in "
            f"one of {', '.join(PICTURE_SUFFIXES)} (usually as {{suffix}})"
        )
    return name
