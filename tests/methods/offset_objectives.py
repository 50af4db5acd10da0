"""ODM with offsets on small networks."""

from __future__ import annotations

from typing import Any

import torch
from objectives import batch, float_network, objective, total
from torch import Tensor

from srquant.methods.odm import ODM
from srquant.methods.offsets import OffsetBounds
from srquant.networks import EDSRConfig
from srquant.quantizers.straight_through import integer_grid

OPTIONS = {"offsets": "both", "offset_ratio": 1.0, "calibration_batches": 3, "bounds_learning_rate": 0.05}


def made(
    name: str = "edsr",
    options: dict[str, Any] | None = None,
    bits: int = 4,
    placement: str = "strict",
    peak: float = 1.0,
) -> ODM:
    network = float_network(name, EDSRConfig(scale=2, blocks=2, width=8, peak=peak) if name == "edsr" else None)
    given = {**OPTIONS, **(options or {})}
    built = objective("odm", network, given, bits=bits, placement=placement, learning_rate=1e-3)
    assert isinstance(built, ODM)
    return built


def steps(trained: ODM, epochs: int = 2, count: int = 4, same: bool = False) -> list[float]:
    optimizer, losses = torch.optim.Adam(trained.parameter_groups()), list[float]()
    for epoch in range(1, epochs + 1):
        trained.start_epoch(epoch)
        for step in range(count):
            learns = trained.learns(epoch)
            with torch.set_grad_enabled(learns):
                loss = total(trained(*batch(0 if same else 10 * epoch + step)))
            if learns:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
    return losses


def low_bit(trained: ODM) -> dict[str, OffsetBounds]:
    quantizers = trained.network.activation_quantizers()
    return {name: q for name, q in quantizers.items() if isinstance(q, OffsetBounds)}


def moved(quantizer: OffsetBounds) -> Tensor:
    """How many steps every channel's window is away from the bounds."""
    return quantizer.window_starts() + integer_grid(quantizer.lower, quantizer.upper, quantizer.bits)[1]
