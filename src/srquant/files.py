"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srquant.errors import UserError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block succeeds.

    The temporary name keeps the suffix, so that writers that look at it behave alike. When the block
    raises, nothing is left behind and an older `target` is untouched.

    Raises:
        UserError: the folder of `target` does not exist or cannot be written, or `target` is a folder.
    """
    check_target(target)
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise UserError(f"cannot write '{target}': {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(target: Path) -> None:
    """Refuse a file that cannot be written, before the work that would be lost.

    Raises:
        UserError: `target` is a folder, or its own folder does not exist, cannot be written or cannot be reached.
    """
    try:
        is_folder, has_folder = target.is_dir(), target.absolute().parent.is_dir()
    except OSError as error:
        raise UserError(f"cannot write '{target}': {error.strerror}") from error
    if is_folder:
        raise UserError(f"cannot write '{target}': it is a folder")
    if not has_folder:
        raise UserError(f"cannot write '{target}': the folder '{target.parent}' does not exist")
    if not os.access(target.absolute().parent, os.W_OK):
        raise UserError(f"cannot write '{target}': the folder '{target.parent}' is not writable")


def check_apart(target: Path, *others: Path | str | None) -> None:
    """Refuse to write over a file that is read, or written, too.

    Raises:
        UserError: `target` is one of the others, wherever links lead; None and what is no path is passed over.
    """
    for other in others:
        if other is not None and target.resolve() == Path(other).resolve():
            raise UserError(f"cannot write '{target}': it would take the place of '{other}'; name another file")


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
