"""The most memory that the training of a run held, device by device, over all its sittings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from srquant.errors import UserError
from srquant.evaluation.memory import Peak, peak_memory
from srquant.files import atomic_path
from srquant.training.checkpoint import find_checkpoint

_PEAK_FILE = "peak_memory.json"
_UNNAMED = ""
"""The device of a file with one number, as an earlier srquant wrote it."""


@contextmanager
def training_memory(folder: Path, accelerator: str) -> Iterator[None]:
    """Record the most that a sitting holds, however it ends, if there is a newer checkpoint then.

    Args:
        folder: of the run.
        accelerator: cpu, cuda or auto.
    """
    before = find_checkpoint(folder, "last")
    cuda = accelerator != "cpu" and torch.cuda.is_available()
    device, peak = torch.cuda.get_device_name() if cuda else "cpu", Peak()
    try:
        with peak_memory(cuda=cuda) as peak:
            yield
    finally:
        if find_checkpoint(folder, "last") != before:
            with suppress(OSError, UserError):
                _record(folder, device, peak.megabytes)


def recorded_memory(folder: Path) -> dict[str, float | None]:
    """Megabytes that were held at most, by the device that trained; None where they could not be measured."""
    try:
        told = json.loads((folder / _PEAK_FILE).read_text(encoding="utf-8"))["megabytes"]
        if not isinstance(told, Mapping):
            return {_UNNAMED: float(told)}
        return {str(device): None if value is None else float(value) for device, value in told.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _record(folder: Path, device: str, megabytes: float | None) -> None:
    peaks = recorded_memory(folder)
    if _UNNAMED in peaks:  # an earlier sitting, taken for one on this device
        peaks = {device: peaks[_UNNAMED]}
    known = [value for value in (peaks.get(device), megabytes) if value is not None]
    with atomic_path(folder / _PEAK_FILE) as temporary:
        temporary.write_text(json.dumps({"megabytes": {**peaks, device: max(known, default=None)}}) + "\n")
