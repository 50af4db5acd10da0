"""Tiny pictures, networks and runs; also used by the scripts that tests start as processes."""

from __future__ import annotations

import csv
import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srquant.config import TrainingConfig
from srquant.imaging import Picture, write_picture
from srquant.networks import EDSR, EDSRConfig, SRNetwork
from srquant.training import Reconstruction, Result, TrainingData, Validation, fit, load_checkpoint

SCALE = 2
TIMING = ("images_per_second", "seconds")


@dataclass(frozen=True)
class TrainingFolders:
    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def held_out(self) -> Path:
        return self.root / "held_out"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def data(self, config: TrainingConfig, progress: Any = None) -> TrainingData:
        return TrainingData([self.train], SCALE, config, cache=self.cache, progress=progress)

    def validation(self, config: TrainingConfig) -> Validation:
        return Validation(self.held_out, SCALE, config.validation_pictures)

    def fit(self, name: str, config: TrainingConfig, objective: Any = None, **options: Any) -> Result:
        return fit(
            objective or small_objective(config),
            self.data(config),
            self.validation(config),
            config,
            self.root / name,
            accelerator="cpu",
            **options,
        )


class Eventful(Reconstruction):
    """Has everything that is hard to go on with: a statistics epoch in eval mode, counts, noise, a frozen teacher."""

    calls: Tensor
    brightness: Tensor

    def __init__(self, network: SRNetwork, learning_rate: float) -> None:
        super().__init__(network, learning_rate)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("brightness", torch.zeros(()))
        self.scale = torch.nn.Parameter(torch.tensor([1.0]))
        self.teacher = (Reconstruction(EDSR(EDSRConfig(scale=SCALE, blocks=1, width=4)), 1.0).eval(),)
        self._mark = 0

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        self.calls[1] += 1
        assert torch.is_grad_enabled() == self.training == (self.calls[0] != 2)
        if not self.training:
            self.brightness.lerp_(low.mean(), 0.1)
            return {"l1": self.network(low).mean().abs()}
        low = low + torch.randn_like(low) * np.random.uniform() * random.random() + self.brightness * 1e-3
        out = self.network(low) * self.scale
        return {"l1": (out - high).abs().mean(), "teacher": 0.1 * (out - self.teacher[0].network(low)).abs().mean()}

    def start_epoch(self, epoch: int) -> None:
        self.calls[0] += 1
        assert self.calls[0] == epoch
        assert self.training
        self._mark = 100 + epoch
        self.train(epoch != 2)

    def learns(self, epoch: int) -> bool:
        return epoch != 2

    def is_final(self, epoch: int) -> bool:
        return epoch > 2

    def get_extra_state(self) -> dict[str, int]:
        return {"mark": self._mark}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._mark = state["mark"]


class Told:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps = 0

    def start(self, name: str, total: int) -> None:
        self.tasks.append(f"{name}: {total}")

    def advance(self) -> None:
        self.steps += 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def finish(self) -> None:
        pass


def folders_in(root: Path) -> TrainingFolders:
    folders = TrainingFolders(root)
    for folder, count in ((folders.train, 4), (folders.held_out, 2)):
        folder.mkdir()
        for index in range(count):
            write_small_picture(folder / f"p{index}.png", 40 + 4 * index, 48, seed=index)
    return folders


def write_small_picture(path: Path, height: int, width: int, seed: int) -> None:
    """Smooth waves with a little noise, so that there is something to learn."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y * random.uniform(0.1, 0.6) + x * random.uniform(0.1, 0.6) + random.uniform(0, 6)) for _ in "rgb"]
    pixels = 128 + 80 * np.stack(waves, -1) + random.normal(0, 4, (height, width, 3))
    write_picture(path, Picture(pixels.clip(0, 255).astype(np.uint8)))


def small_config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "epochs": 10,
        "steps_per_epoch": 4,
        "batch": 4,
        "patch": 8,
        "learning_rate": 1e-3,
        "schedule": "step",
        "decay_epochs": 3,
        "gamma": 0.5,
        "warm_up_steps": 3,
        "ema": 0.95,
        "checkpoint_every": 3,
    }
    return TrainingConfig(**(settings | changes))


def small_objective(config: TrainingConfig) -> Reconstruction:
    torch.manual_seed(5)
    return Reconstruction(EDSR(EDSRConfig(scale=SCALE, blocks=1, width=4)), config.learning_rate)


def eventful(config: TrainingConfig) -> Eventful:
    torch.manual_seed(5)
    return Eventful(EDSR(EDSRConfig(scale=SCALE, blocks=1, width=4)), config.learning_rate)


def same(first: Any, second: Any) -> bool:
    """Whether nested plain data and tensors are equal bit for bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def assert_same_run(first: Path, second: Path) -> None:
    """Both folders hold the same checkpoints and logs, but for timing."""
    for kind in ("last", "best"):
        one, other = load_checkpoint(first, kind), load_checkpoint(second, kind)
        assert (one.step, one.epoch, one.score) == (other.step, other.epoch, other.score)
        assert one.content.keys() == other.content.keys()
        for key, value in one.content.items():
            if key == "position":
                value, other.content[key]["seconds"] = value | {"seconds": 0}, 0
            assert same(value, other.content[key]), (kind, key)
    assert log_rows(first) == log_rows(second)


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the CSV but for timing, after checking them against SQLite."""
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    connection = sqlite3.connect(folder / "log.sqlite")
    stored = connection.execute("SELECT step, epoch, loss, validation_psnr, seconds FROM log ORDER BY step").fetchall()
    connection.close()
    kept = [(row["step"], row["epoch"], row["loss"], row["validation_psnr"], row["seconds"]) for row in rows]
    assert kept == [tuple("" if value is None else str(value) for value in row) for row in stored]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]
