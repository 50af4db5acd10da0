"""The most memory that a piece of work holds: of the process (Linux) or of the CUDA device."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_MEGABYTE = 1e6


class Peak:
    """What `peak_memory` measured.

    Attributes:
        megabytes: held at most, above what was held at the start; None before the end, or where it cannot be told.
    """

    def __init__(self) -> None:
        self.megabytes: float | None = None


@contextmanager
def peak_memory(*, cuda: bool) -> Iterator[Peak]:
    """Measure what the block holds at most, above what is held when it begins.

    On a CUDA device that is what PyTorch allocates there. Otherwise it is the resident memory of this process, whose
    peak Linux counts anew when it is told to; freed memory is given back to the system first.
    """
    peak = Peak()
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        _give_back()
        before = _count_anew()
    try:
        yield peak
    finally:
        most = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
        if before is not None and most is not None:
            peak.megabytes = max(most - before, 0) / _MEGABYTE


def _give_back() -> None:
    """Have the C library return its free memory; one that cannot is left alone."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def _count_anew() -> int | None:
    """Begin a new peak; the bytes that are resident now, or None where there is no such count."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(word: str) -> int | None:
    """Bytes that the system tells of this process under a word."""
    try:
        found = re.search(rf"^{word}:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
