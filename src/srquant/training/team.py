"""The processes that train together: one per device, each with its slice of every batch.

Gradients are averaged by one all-reduce over all of them, after the backward pass. A quantiser that sets its own
parameters or running statistics from the batch it sees does so on a slice only; what a forward pass changed is
therefore averaged, too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from srquant.config import TrainingConfig
from srquant.errors import UserError

Value = TypeVar("Value")

_LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


class Team:
    """Fabric's processes and what they tell each other; with one process everything is free.

    Args:
        devices: how many.
        accelerator: Fabric's word for their kind.
        config: precision and batch.

    Raises:
        UserError: there are no such devices, or the batch cannot be shared evenly.
    """

    def __init__(self, devices: int, accelerator: str, config: TrainingConfig) -> None:
        if devices < 1 or config.batch % devices:
            raise UserError(f"a batch of {config.batch} cannot be shared by {devices} devices: it has to be a multiple")
        precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if config.precision == "bf16" else "32-true"
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        try:
            strategy = "ddp" if devices > 1 else "auto"
            self.fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
        except (RuntimeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise UserError(f"cannot train on {devices} device(s) of kind '{accelerator}': {message}") from error
        self.fabric.launch()
        share = config.batch // self.size
        self.places = range(self.rank * share, (self.rank + 1) * share)

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return self.fabric.global_rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.fabric.world_size

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of all processes' values."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.fabric.device)
        distributed.all_reduce(total)
        return float(total)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return self.sum(float(flag)) > 0

    def together(self, work: Callable[[], Value]) -> Value:
        """Do something that can fail with a `UserError` in one process: then it fails in all of them."""
        if self.size == 1:
            return work()
        result, message = None, None
        try:
            result = work()
        except UserError as error:
            message = str(error)
        if self.any(message is not None):
            raise UserError(self.first(message) or "another process failed")
        return result  # pyright: ignore[reportReturnType]

    def first(self, word: str | None) -> str | None:
        """The word of the first process that has one."""
        if self.size == 1:
            return word
        words = [self.fabric.broadcast(word, src=rank) for rank in range(self.size)]
        return next((w for w in words if w), None)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over all processes, in one transfer."""
        if self.size == 1 or not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
            distributed.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    def leave(self) -> None:
        """End the common work; only the leading process goes on, the others end here.

        The leading process may train alone afterwards, but not launch others again.
        """
        if self.size == 1:
            return
        self.fabric.barrier()
        distributed.destroy_process_group()
        for name in _LAUNCHED:
            os.environ.pop(name, None)
        if not self.leads:
            raise SystemExit(0)


class ForwardChanges:
    """Finds the parameters and statistics that forward passes set in place.

    Args:
        team: whose processes have to agree.
        objective: what is trained.
    """

    def __init__(self, team: Team, objective: nn.Module) -> None:
        self._team = team
        self._watched: list[Tensor] = []
        if team.size > 1:
            self._watched = [*objective.parameters(), *(b for b in objective.buffers() if b.dtype == torch.float32)]
        self._versions: list[int] = []

    def before(self) -> None:
        """Called before a forward pass."""
        self._versions = [tensor._version for tensor in self._watched]

    def share(self) -> None:
        """Called after the backward pass: what was changed gets its mean over all processes."""
        if not self._watched:
            return
        changed = [float(t._version != v) for t, v in zip(self._watched, self._versions, strict=True)]
        flags = torch.tensor(changed, device=self._watched[0].device)
        distributed.all_reduce(flags)
        self._team.average([t.detach() for t, flag in zip(self._watched, flags.tolist(), strict=True) if flag])
