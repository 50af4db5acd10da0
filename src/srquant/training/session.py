"""What holds while `fit` runs in a process: a folder of its own, a soft Ctrl-C, repeatable kernels."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from srquant.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


LOCK_FILE = ".lock"
"""In a folder that `own_folder` holds, and there it stays."""


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a run and keep other processes out of it; the lock goes with the process.

    Raises:
        UserError: the folder cannot be made, or another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise UserError(f"cannot write in the folder '{folder}': {error.strerror}") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process trains in '{folder}'") from error
        yield


class Interruption:
    """Inside the block the first Ctrl-C only sets `told`; the second one interrupts at once."""

    def __init__(self) -> None:
        self.told = False
        self._before: object = None

    def __enter__(self) -> Interruption:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # pyright: ignore[reportArgumentType]  # came from signal

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # Python's signature
        if self.told:
            raise KeyboardInterrupt
        self.told = True


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside the block cuDNN takes only kernels that give the same bits every time.

    The number of threads, which decides the order of sums, may be changed inside; it is put back.
    """
    threads = torch.get_num_threads()
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
