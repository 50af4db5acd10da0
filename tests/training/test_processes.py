"""Runs that are killed, interrupted and shared by processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import TrainingFolders, assert_same_run, eventful, folders_in, log_rows
from training_process import LONG, SHARED, Ranged

from srquant.training import load_checkpoint

SCRIPT = Path(__file__).with_name("training_process.py")
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def start(folders: TrainingFolders, mode: str, name: str, *rest: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), mode, str(folders.root), name, *map(str, rest)]
    environment = {**os.environ, **QUIET}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folders: TrainingFolders, mode: str, name: str, *rest: object) -> str:
    process = start(folders, mode, name, *rest)
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, out + errors
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, never interrupted, trained here."""
    folders = folders_in(tmp_path_factory.mktemp("whole"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folders.fit("whole", LONG, eventful(LONG))
    torch.set_num_threads(before)
    return folders.root / "whole"


def test_a_run_killed_at_random_moments_ends_as_if_it_were_not(folders: TrainingFolders, whole: Path) -> None:
    steps = [int(word) for word in run(folders, "killed", "killed", 20).splitlines()[0].split()[1:]]
    assert len(steps) == 20
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    assert_same_run(whole, folders.root / "killed")


def test_ctrl_c_ends_the_step_saves_and_says_so(folders: TrainingFolders, whole: Path) -> None:
    process = start(folders, "fit", "run")
    last = folders.root / "run" / "checkpoints"
    deadline = time.monotonic() + 100
    while not any(last.glob("last-000000[1-9]*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert errors == ""
    step = load_checkpoint(folders.root / "run", "last").step
    assert 0 < step < 300
    assert out.splitlines()[-1] == (
        f"stopped after step {step}; the run is saved in '{folders.root / 'run'}' and can be resumed"
    )
    assert folders.fit("run", LONG, eventful(LONG), resume=True).finished
    assert_same_run(whole, folders.root / "run")


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in row.items()} for row in log_rows(folder)]


def approximately(rows: list[dict[str, float]], tolerance: float) -> list[Any]:
    return [pytest.approx(row, rel=tolerance) for row in rows]


def test_two_processes_train_as_one_with_the_joined_batch_and_go_on_alike(folders: TrainingFolders) -> None:
    one = folders.fit("one", SHARED)
    two = run(folders, "plain", "two", 2)
    assert two.count("Result(") == 1, "only the leading process returns"
    assert f"finished=True, step={one.step}, epoch={one.epoch}" in two
    rows = numbers(folders.root / "one")
    assert len(rows) == 4
    assert numbers(folders.root / "two") == approximately(rows, 1e-5)
    assert "finished=False, step=1," in run(folders, "plain", "pieces", 2, 0.0)
    assert "finished=True, step=16," in run(folders, "plain", "pieces", 2)
    assert_same_run(folders.root / "two", folders.root / "pieces")


def test_what_a_forward_pass_sets_is_the_mean_of_all_processes(folders: TrainingFolders) -> None:
    """The mean of means is the joined mean: the run is that of one process."""
    torch.manual_seed(5)
    folders.fit("one", SHARED, Ranged(1e-3))
    run(folders, "shared", "two", 2)
    one, two = (load_checkpoint(folders.root / name, "last").content["objective"] for name in ("one", "two"))
    assert one["mean"].item() == pytest.approx(two["mean"].item(), rel=1e-5)
    assert one["offset"].item() == pytest.approx(two["offset"].item(), rel=1e-2)
    assert numbers(folders.root / "two")[-1] == pytest.approx(numbers(folders.root / "one")[-1], rel=1e-2)


def test_a_mistake_in_one_process_ends_all_with_its_message(folders: TrainingFolders) -> None:
    process = start(folders, "broken", "run", 2)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 2, errors
    (line,) = [line for line in out.splitlines() if line.startswith("step ")]
    assert line.startswith("step 9 (epoch 3): the loss is not a finite number")
    assert "'l1' is inf" in line
