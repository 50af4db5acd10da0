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
    if target.is_dir():
        raise UserError(f"cannot write '{target}': it is a folder")
    if not target.parent.is_dir():
        raise UserError(f"cannot write '{target}': the folder '{target.parent}' does not exist")
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


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
