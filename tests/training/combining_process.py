"""A run on several devices whose objective combines gradients: python combining_process.py ROOT NAME DEVICES."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from small_training import TrainingFolders, small_config
from torch import Tensor, nn

from srquant.networks import EDSR, EDSRConfig
from srquant.training import Reconstruction

SHARED = small_config(epochs=3, checkpoint_every=50, ema=None, warm_up_steps=0)


class Gated(Reconstruction):
    """A second gradient counts where its sign is that of the first, which another batch can turn round."""

    apart = frozenset({"spread"})

    def __init__(self) -> None:
        torch.manual_seed(5)
        super().__init__(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        spread = (self.network(low) - high).square().mean((1, 2, 3)).sqrt().mean()
        return {**super().forward(low, high), "spread": spread}

    def combine(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], apart: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        assert len(parameters) == len(gradients)
        pairs = zip(gradients, apart, strict=True)
        return [g if g is None or r is None else torch.where(g * r > 0, g + 3 * r, 0.1 * g) for g, r in pairs]


def main() -> None:
    root, name, devices = sys.argv[1:]
    torch.set_num_threads(1)
    TrainingFolders(Path(root)).fit(name, SHARED, Gated(), devices=int(devices))


if __name__ == "__main__":
    main()
