"""Reading the recorded vectors and comparing with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Golden:
    """One archive of `../shared/golden`, or the part of it whose names begin with a prefix; tensors by name."""

    def __init__(self, source: Path | Mapping[str, np.ndarray], prefix: str = "") -> None:
        self.arrays: Mapping[str, np.ndarray] = dict(np.load(source)) if isinstance(source, Path) else source
        self.prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[self.prefix + name]))

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.arrays

    def part(self, prefix: str) -> Golden:
        found = Golden(self.arrays, self.prefix + prefix)
        assert found.names()
        return found

    def names(self) -> list[str]:
        return [name.removeprefix(self.prefix) for name in self.arrays if name.startswith(self.prefix)]

    def words(self, name: str) -> list[str]:
        return [str(word) for word in self.arrays[self.prefix + name]]


def same(actual: Tensor | float | None, expected: Tensor, tolerance: float = 1e-5, what: str = "") -> None:
    """Assert that no element differs by more than `tolerance` of the largest expected magnitude."""
    assert actual is not None, what
    actual = torch.as_tensor(actual).detach().double().reshape(expected.shape)
    expected = expected.double()
    largest = float(expected.abs().max())
    worst = float((actual - expected).abs().max())
    assert worst <= tolerance * max(largest, 1e-12), f"{what}: differs by {worst}, the largest magnitude is {largest}"
