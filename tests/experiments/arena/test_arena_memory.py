from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from srquant.experiments.arena.memory import recorded_memory, training_memory

GPU = "Some GPU"


def sitting(folder: Path, *, steps: bool = True, interrupted: bool = False) -> None:
    """A sitting with or without a step, on whatever there is."""
    with training_memory(folder, "auto"):
        if steps:
            (folder / "checkpoints" / f"last-{len(list(folder.rglob('last-*'))):08d}").mkdir(parents=True)
        if interrupted:
            raise KeyboardInterrupt


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds 3 MB at most, 1 MB of them before."""
    told = {"is_available": True, "get_device_name": GPU, "max_memory_allocated": 3_000_000, "memory_allocated": 10**6}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)


def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_devices_are_recorded_apart(tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting(tmp_path)
    assert recorded_memory(tmp_path) == {GPU: 2.0}
    processor(monkeypatch)
    sitting(tmp_path)
    peaks = recorded_memory(tmp_path)
    assert list(peaks) == [GPU, "cpu"]
    assert peaks[GPU] == 2.0


def test_the_most_of_all_sittings_counts(tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, known in ((4_000_000, 3.0), (2_000_000, 3.0), (5_000_000, 4.0)):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda most=most: most)
        sitting(tmp_path)
        assert recorded_memory(tmp_path) == {GPU: known}


def test_a_sitting_without_a_step_is_not_recorded(tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting(tmp_path, steps=False)
    assert recorded_memory(tmp_path) == {}
    sitting(tmp_path)
    processor(monkeypatch)
    sitting(tmp_path, steps=False)
    assert list(recorded_memory(tmp_path)) == [GPU]


def test_an_interrupted_sitting_is_recorded(tmp_path: Path, cuda: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        sitting(tmp_path, interrupted=True)
    assert recorded_memory(tmp_path) == {GPU: 2.0}


def test_a_number_without_a_device_counts_for_the_present_one(tmp_path: Path, cuda: None) -> None:
    (tmp_path / "peak_memory.json").write_text('{"megabytes": 5.0}')
    assert recorded_memory(tmp_path) == {"": 5.0}
    sitting(tmp_path)
    assert recorded_memory(tmp_path) == {GPU: 5.0}
    assert json.loads((tmp_path / "peak_memory.json").read_text()) == {"megabytes": {GPU: 5.0}}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"megabytes": "many"}', '{"megabytes": {"cpu": []}}'])
def test_what_cannot_be_read_is_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "peak_memory.json").write_text(content)
    assert recorded_memory(tmp_path) == {}
