"""The exponential moving average of a network's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_RAMP = 10
"""After n updates the decay is at most n / (n + 10): the start values are forgotten at once."""


class Average:
    """Averaged parameters of a network; buffers are those of the network itself.

    Args:
        network: where the parameters come from.
        decay: of one update, or None for no average at all.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        self._decay = decay
        self._live = list(network.parameters()) if decay is not None else []
        self._kept = [p.detach().clone() for p in self._live]
        self._updates = 0

    @torch.no_grad()
    def update(self, *, learnt: bool) -> None:
        """Take in the parameters of one step; those of a statistics step replace the average."""
        if not self._live:
            return
        assert self._decay is not None
        weight = 1.0 if not learnt else 1 - min(self._decay, self._updates / (self._updates + _RAMP))
        self._updates += learnt
        live = [p.detach() for p in self._live]
        torch._foreach_lerp_(self._kept, live, weight)  # pyright: ignore[reportPrivateImportUsage]  # one kernel

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network has the averaged parameters."""
        own = [p.detach().clone() for p in self._live]
        self._put(self._kept)
        try:
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, Any]:
        """Everything that goes on from here."""
        return {"parameters": self._kept, "updates": self._updates}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for kept, saved in zip(self._kept, state["parameters"], strict=True):
            kept.copy_(saved)
        self._updates = state["updates"]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for live, value in zip(self._live, values, strict=True):
            live.copy_(value)
