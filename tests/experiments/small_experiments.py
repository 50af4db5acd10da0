"""Experiments that take a second: tiny networks, few steps, drawn pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srquant.config import Experiment, build
from srquant.experiments import Trained, train
from srquant.imaging import Picture, write_picture
from srquant.settings import merged, to_toml

FLOAT: dict[str, Any] = {
    "network": {"name": "edsr", "scale": 2, "blocks": 2, "width": 8},
    "training": {"epochs": 3, "steps_per_epoch": 2, "batch": 2, "patch": 8, "learning_rate": 1e-3},
}
DDTB: dict[str, Any] = merged(
    FLOAT,
    {
        "quantization": {"weight_bits": 2, "activation_bits": 2, "placement": "ddtb"},
        "method": {"name": "ddtb", "gate": "none"},
    },
)
SIMULATED: dict[str, Any] = merged(
    DDTB,
    {
        "quantization": {"placement": "ddtb-official", "rest": "float"},
        "method": {"gate": "official", "gate_start_epoch": 3, "grid": "official"},
    },
)


TINY: dict[str, dict[str, Any]] = {
    "edsr": {"blocks": 2, "width": 8},
    "rdn": {"blocks": 2, "layers": 2, "growth": 4, "width": 8},
    "srresnet": {"blocks": 2, "width": 8},
    "sesr": {"blocks": 2, "width": 4, "expanded": 8},
    "quicksrnet": {"layers": 1, "width": 4},
    "ecbsr": {"blocks": 1, "width": 4},
}


@dataclass(frozen=True)
class Place:
    """Pictures, and a float network trained on them."""

    pictures: Path
    validation: Path
    benchmark: Path
    network: Path


def experiment(values: dict[str, Any], **changes: Any) -> Experiment:
    return build(Experiment, merged(values, changes))


def train_on(
    place: Place, values: dict[str, Any], folder: Path, *, resume: bool = False, time_budget: float | None = None
) -> Trained:
    """Train on a place's pictures, from its network, on the processor."""
    return train(
        experiment(values),
        folder,
        data=[place.pictures],
        validation=place.validation,
        weights=place.network,
        accelerator="cpu",
        resume=resume,
        time_budget=time_budget,
    )


def shrunk(full: Experiment) -> Experiment:
    """An experiment on a tiny network of its family, from random weights."""
    network = full.network.model_copy(update=TINY[full.network.name])
    return full.model_copy(update={"network": network, "weights": "scratch"})


def write_experiment(path: Path, values: dict[str, Any], **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_toml(experiment(values, **changes)))


def write_pictures(folder: Path, count: int = 2, seed: int = 0) -> Path:
    """Soft pictures, so that there is something to learn."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        coarse = random.integers(0, 256, (9, 11, 3)).astype(np.float64)
        fine = np.kron(coarse, np.ones((4, 4, 1)))
        smooth = (fine + np.roll(fine, 1, 0) + np.roll(fine, 2, 1) + np.roll(fine, 3, 0)) / 4
        write_picture(folder / f"p{index}.png", Picture(smooth.astype(np.uint8), None, False, None, None))
    return folder
