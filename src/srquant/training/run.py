"""Everything a run changes while it goes, how it is saved, and how it goes on."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from srquant.config import TrainingConfig
from srquant.errors import UserError
from srquant.progress import Progress
from srquant.training.average import Average
from srquant.training.checkpoint import (
    Checkpoint,
    Kind,
    clean_leftovers,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from srquant.training.objective import Objective
from srquant.training.schedule import rate_factor
from srquant.training.team import Team

_MAY_CHANGE = ("checkpoint_every", "validate_every", "unreadable")
"""Settings that do not change what is learnt."""


@dataclass
class Position:
    """How far a run is.

    Attributes:
        step: the last one done.
        epoch: the last one started.
        best: highest validation PSNR so far.
        best_step: where it was reached.
        seconds: of training, over all sessions.
        sums: of the loss parts since the last row of the log.
        counts: steps in which each part was given since the last row of the log.
        logged: step of the last row of the log.
    """

    step: int = 0
    epoch: int = 0
    best: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    logged: int = 0


class Run:
    """The objective with its optimiser, average and position.

    Args:
        objective: what is trained.
        config: how.
        folder: where checkpoints go.
        team: the processes.
    """

    def __init__(self, objective: Objective, config: TrainingConfig, folder: Path, team: Team) -> None:
        self.objective = objective
        self.module = cast(nn.Module, objective)
        self.module.to(team.fabric.device)
        self.config, self.folder, self.team = config, folder, team
        groups = [{**group, "base_lr": group["lr"]} for group in objective.parameter_groups()]
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay
        )
        self.average = Average(objective.network, config.ema)
        self.position = Position()

    def begin(self, resume: bool, fingerprint: str, progress: Progress) -> None:
        """Start anew with a checkpoint of step 0, or go on from the newest checkpoint.

        Raises:
            UserError: there is a run already and `resume` is False; or it is damaged or was made otherwise.
        """
        found = self.team.first(self.team.together(self._found))
        if found is None:
            random.seed(self.config.seed)
            np.random.seed(self.config.seed % 2**32)
            torch.manual_seed(self.config.seed)
            self.module.train()
            self.save("last", fingerprint, None)
            return
        if not resume:
            raise UserError(
                f"'{self.folder}' already holds a run ('{found}'); resume it (resume=True, --resume) or choose "
                "another folder"
            )
        kind: Kind = "last" if Path(found).name.startswith("last") else "best"
        checkpoint = self.team.together(lambda: load_checkpoint(self.folder, kind))
        self._check(checkpoint, fingerprint, progress)
        self._restore(checkpoint)

    def enter(self, epoch: int) -> None:
        """Tell the objective of an epoch, unless it knows."""
        if epoch != self.position.epoch:
            self.module.train()
            self.objective.start_epoch(epoch)
            self.position.epoch = epoch

    def set_rates(self, step: int) -> None:
        """Give every group its learning rate of a step."""
        factor = rate_factor(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def save(self, kind: Kind, fingerprint: str, score: float | None) -> None:
        """Write a checkpoint, from the leading process."""
        self.team.together(lambda: self._save(kind, fingerprint, score) if self.team.leads else None)

    def _found(self) -> str | None:
        if not self.team.leads:
            return None
        clean_leftovers(self.folder)
        found = find_checkpoint(self.folder, "last") or find_checkpoint(self.folder, "best")
        return str(found) if found else None

    def _save(self, kind: Kind, fingerprint: str, score: float | None) -> None:
        facts = {
            "step": self.position.step,
            "epoch": self.position.epoch,
            "score": score,
            "config": self.config.model_dump(mode="json"),
            "description": self.objective.describe(),
        }
        content = {
            "objective": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state(),
            "position": asdict(self.position),
            "evaluating": [name for name, module in self.module.named_modules() if not module.training],
            "random": _random_states(self.team.fabric.device),
            "threads": torch.get_num_threads(),
            "fingerprint": fingerprint,
        }
        save_checkpoint(self.folder, kind, facts, content)

    def _restore(self, checkpoint: Checkpoint) -> None:
        content = checkpoint.content
        checkpoint.restore(self.module, averaged=False)
        self.optimizer.load_state_dict(content["optimizer"])
        self.average.load(content["average"])
        self.position = Position(**content["position"])
        evaluating = set(content["evaluating"])
        for name, module in self.module.named_modules():
            module.training = name not in evaluating
        _set_random_states(content["random"], self.team.fabric.device)
        torch.set_num_threads(content["threads"])  # another number sums in another order

    def _check(self, checkpoint: Checkpoint, fingerprint: str, progress: Progress) -> None:
        """Refuse to go on with something else than what was begun."""
        was, now = checkpoint.config, self.config.model_dump(mode="json")
        for key, value in now.items():
            if key not in _MAY_CHANGE and was.get(key) != value and not (key == "epochs" and value > was[key]):
                raise self._other(key, was.get(key), value, "; epochs may only grow" if key == "epochs" else "")
        if was["epochs"] != now["epochs"] and self.config.schedule == "cosine":
            progress.warn("the cosine of the learning rate is stretched to the new number of epochs")
        described = json.loads(json.dumps(self.objective.describe()))
        for key in {**checkpoint.description, **described}:
            if checkpoint.description.get(key) != described.get(key):
                raise self._other(key, checkpoint.description.get(key), described.get(key))
        if checkpoint.content["fingerprint"] != fingerprint:
            if self.config.unreadable == "refuse":
                raise UserError(f"the run in '{self.folder}' was begun with other training pictures")
            progress.warn("the training pictures are not those the run was begun with: it cannot be repeated exactly")

    def _other(self, key: str, was: object, now: object, rule: str = "") -> UserError:
        return UserError(
            f"the run in '{self.folder}' was begun with {key} = {was!r}, not {now!r}{rule}; go on with the same "
            "settings or choose another folder"
        )


def _random_states(device: torch.device) -> dict[str, Any]:
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=True)  # a tuple; the dict is that of legacy=False
    name, keys, place, has_gauss, cached = state
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), place, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
