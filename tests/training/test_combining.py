"""Objectives that combine the gradients of their loss parts themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from combining_process import SHARED, Gated
from small_training import TrainingFolders, assert_same_run, small_config
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.networks import EDSR, EDSRConfig
from srquant.training import Reconstruction, load_checkpoint
from srquant.training.objective import Combining


class Combined(Reconstruction):
    """Twice the first gradient minus half the second; the second loss does not reach biases."""

    apart = frozenset({"size"})

    def __init__(self, *, spoilt: bool = False) -> None:
        torch.manual_seed(5)
        super().__init__(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)
        self.spoilt = spoilt

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        size = torch.stack([p.square().sum() for p in self.parameters() if p.dim() > 1]).sum()
        return {**super().forward(low, high), "size": size * (torch.nan if self.spoilt else 1)}

    def combine(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], apart: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        assert [r is not None for r in apart] == [p.dim() > 1 for p in parameters]
        pairs = zip(gradients, apart, strict=True)
        return [g if g is None else 2 * g - (0 if r is None else 0.5 * r) for g, r in pairs]


class Added(Combined):
    """The same by adding the losses."""

    apart = frozenset()

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        parts = super().forward(low, high)
        return {"l1": 2 * parts["l1"], "size": -0.5 * parts["size"]}


def weights_after(folders: TrainingFolders, name: str, made: Combined, **changes: Any) -> Tensor:
    folders.fit(name, small_config(epochs=2, **changes), made)
    return torch.cat([parameter.detach().flatten() for parameter in made.parameters()])


@pytest.mark.parametrize("changes", [{}, {"gradient_clip": 0.01}, {"precision": "bf16"}])
def test_the_optimiser_gets_what_the_objective_makes_of_the_gradients(
    folders: TrainingFolders, changes: dict[str, Any]
) -> None:
    assert isinstance(Combined(), Combining)
    assert not isinstance(Reconstruction(Combined().network.network, 1e-3), Combining)
    found, expected = (
        weights_after(folders, "one", Combined(), **changes),
        weights_after(folders, "two", Added(), **changes),
    )
    start = torch.cat([parameter.detach().flatten() for parameter in Combined().parameters()])
    assert (expected - start).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


def test_a_part_that_stands_apart_goes_on_exactly(folders: TrainingFolders) -> None:
    config = small_config(epochs=4)
    folders.fit("whole", config, Combined())
    folders.fit("halves", config.model_copy(update={"epochs": 2}), Combined())
    folders.fit("halves", config, Combined(), resume=True)
    assert_same_run(folders.root / "whole", folders.root / "halves")


def test_a_part_that_stands_apart_and_is_no_number_is_told(folders: TrainingFolders) -> None:
    with pytest.raises(UserError, match=r"step 1 .*loss part 'size' is nan"):
        weights_after(folders, "run", Combined(spoilt=True))


def test_processes_combine_the_gradients_of_the_joined_batch(folders: TrainingFolders) -> None:
    folders.fit("alone", SHARED, Gated())
    script = Path(__file__).with_name("combining_process.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(script), str(folders.root), "together", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_checkpoint(folders.root / name, "last").content["objective"] for name in ("alone", "together"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)
