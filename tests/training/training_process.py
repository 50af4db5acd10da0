"""Runs that tests start as processes of their own, to kill, interrupt or double them.

    python training_process.py MODE ROOT NAME [KILLS | DEVICES [SECONDS]]

Modes: `fit` trains to the end; `killed` trains in children that are killed at random moments, then to the end; the
others train a short run on several devices.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from small_training import TrainingFolders, eventful, small_config, small_objective
from torch import Tensor

from srquant.errors import UserError
from srquant.networks import EDSR, EDSRConfig
from srquant.training import Reconstruction, load_checkpoint
from srquant.training.checkpoint import find_checkpoint

LONG = small_config(epochs=150, checkpoint_every=2, decay_epochs=20)
SHARED = small_config(epochs=4, checkpoint_every=50, ema=0.9, gradient_clip=50.0)


class Ranged(Reconstruction):
    """Sets a parameter from its first batch and keeps a running mean, as quantisers do."""

    seen: Tensor
    mean: Tensor

    def __init__(self, learning_rate: float) -> None:
        super().__init__(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), learning_rate)
        self.offset = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            if not self.seen:
                self.offset.copy_(low.mean() / 100)
                self.seen.fill_(True)
            self.mean.lerp_(low.mean(), 0.1)
        out = self.network(low) + self.offset + self.mean * 0.01
        return {"l1": (out - high).abs().mean(), "offset": 0.1 * self.offset.abs().sum()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        rest = [p for p in self.parameters() if p is not self.offset]
        rates = {"network": (rest, 1e-3), "offset": ([self.offset], 1e-2)}
        return [{"name": name, "params": params, "lr": rate} for name, (params, rate) in rates.items()]


class Broken(Ranged):
    """Its loss is no number in the process whose slice has the second half of the batch."""

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        parts = super().forward(low, high)
        if os.environ.get("LOCAL_RANK") == "1" and self.told == 3:
            parts["l1"] = parts["l1"] / 0
        return parts

    def start_epoch(self, epoch: int) -> None:
        self.told = epoch


def killed(folders: TrainingFolders, name: str, kills: int) -> None:
    """Print how many children were killed and at which step each found itself."""
    chance = random.Random(7)
    steps = []
    while len(steps) < kills:
        child = os.fork()
        if child == 0:
            folders.fit(name, LONG, eventful(LONG), resume=True)
            os._exit(0)
        time.sleep(chance.uniform(0.02, 0.4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the run was over after {len(steps)} kills")
        found = find_checkpoint(folders.root / name, "last")
        steps.append(load_checkpoint(folders.root / name, "last").step if found else -1)
    print("steps", *steps, flush=True)
    folders.fit(name, LONG, eventful(LONG), resume=True)


def main() -> None:
    mode, root, name, *rest = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    folders = TrainingFolders(Path(root))
    try:
        if mode == "killed":
            killed(folders, name, int(rest[0]))
        elif mode == "fit":
            print("start", flush=True)
            folders.fit(name, LONG, eventful(LONG), resume=True)
        elif mode in ("shared", "broken", "plain"):
            torch.manual_seed(5)
            made = {"shared": Ranged(1e-3), "broken": Broken(1e-3), "plain": small_objective(SHARED)}[mode]
            budget = float(rest[1]) if len(rest) > 1 else None
            print(folders.fit(name, SHARED, made, devices=int(rest[0]), resume=True, time_budget=budget))
    except UserError as error:
        print(error)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(error)
        sys.exit(130)


if __name__ == "__main__":
    main()
