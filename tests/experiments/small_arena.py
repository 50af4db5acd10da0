"""An arena that takes seconds: two methods and calibration, two seeds, six steps of 8x8 patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from small_experiments import Place

from srquant.experiments import Outcome
from srquant.experiments.arena.begin import begin
from srquant.experiments.arena.plan import open_arena
from srquant.experiments.arena.ring import Ring
from srquant.experiments.arena.runs import run_arena
from srquant.settings import merged

ARENA: dict[str, Any] = {
    "arena": {"bits": [2], "seeds": [1, 2]},
    "quantization": {"placement": "ddtb"},
    "calibration": {"images": 3, "crop": 16},
    "training": {"epochs": 2, "steps_per_epoch": 3, "batch": 2, "patch": 8, "validate_every": 2},
    "entry": [
        {"name": "calibrated"},
        {"name": "DDTB", "method": {"name": "ddtb", "gate_start_epoch": 2}},
        {"name": "PAMS", "method": {"name": "pams"}},
    ],
}
RUNS = [f"{name}-2bit-seed{seed}" for seed in (1, 2) for name in ("calibrated", "ddtb", "pams")]


def write_arena(path: Path, **changes: Any) -> Path:
    path.write_text(tomli_w.dumps(merged(ARENA, changes)))
    return path


def ring(folder: Path, place: Place, *benchmarks: Path, engine: str = "auto", **changes: Any) -> Ring:
    """The arena with changes, for a folder; scored on the place's set where no other is named."""
    file = write_arena(folder.with_suffix(".toml"), **changes)
    arena = open_arena(file, weights=place.network, data=[place.pictures], validation=place.validation)
    return Ring(arena, folder, benchmarks or (place.benchmark,), engine)


def sitting(one: Ring, *, resume: bool = True, time_budget: float | None = None) -> list[Outcome]:
    begin(one, resume=resume)
    return list(run_arena(one, time_budget=time_budget, accelerator="cpu"))
