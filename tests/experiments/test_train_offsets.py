"""Offsets trained by the loop, from settings to engines that run integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_experiments import FLOAT, Place, train_on

from srquant.engines import load
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels
from srquant.evaluation.verification import drawn_picture, verify
from srquant.experiments import Trained
from srquant.integer import lower
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork
from srquant.settings import merged

OFFSETS = {
    "name": "odm",
    "calibration_batches": 3,
    "offsets": "both",
    "offset_ratio": 1.0,
    "offset_bits": 4,
    "bounds_learning_rate": 0.1,
}


def run(folder: Path, place: Place, bits: int = 2, **options: Any) -> Trained:
    resume, budget = options.pop("resume", False), options.pop("time_budget", None)
    kernel = options.pop("kernel", "eager")
    values = merged(
        FLOAT,
        {
            "quantization": {"weight_bits": bits, "activation_bits": bits},
            "method": {**OFFSETS, **options},
            "training": {"steps_per_epoch": 4, "epochs": 2, "kernel": kernel},
        },
    )
    return train_on(place, values, folder, resume=resume, time_budget=budget)


@pytest.mark.parametrize("start", ["neutral", "statistics"])
def test_offsets_in_many_sittings_are_those_of_one(start: str, tmp_path: Path, place: Place) -> None:
    whole = run(tmp_path / "whole", place, offset_start=start)
    parts = run(tmp_path / "parts", place, offset_start=start, time_budget=0)
    while not parts.finished:
        parts = run(tmp_path / "parts", place, offset_start=start, time_budget=0, resume=True)
    assert parts.sha256 == whole.sha256


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_engine_runs_trained_offsets(bits: int, tmp_path: Path, place: Place) -> None:
    trained = run(tmp_path / "run", place, bits, kernel="compiled" if bits == 4 else "eager")
    assert trained.file is not None
    model = load(trained.file)
    assert isinstance(model, QuantizedNetwork)
    assert model.offsets()
    assert lower(model).left_in_float() == []
    check_levels(model)
    for row in verify(model, picture=drawn_picture(3, 24, 20), progress=Silent()):
        assert not row.broken, row
        assert row.largest <= 4, row
        assert row.psnr > 45, row


def test_a_kernel_that_rounds_all_channels_alike_is_refused(tmp_path: Path, place: Place) -> None:
    with pytest.raises(UserError, match=r"needs training\.kernel = 'eager' or 'compiled'"):
        run(tmp_path / "run", place, kernel="fused")
