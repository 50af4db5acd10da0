"""ODM trained by the loop, from its settings to engines that run integers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from small_experiments import FLOAT, Place, train_on

from srquant import jobs
from srquant.engines import load
from srquant.engines.exported import ExportedFile
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels, level_counts
from srquant.evaluation.verification import drawn_picture, verify
from srquant.experiments import Trained
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork
from srquant.settings import merged

VERSION_1 = {
    "regulariser": "variance",
    "regulariser_share": 0.05,
    "gate": "sign",
    "granularity": "element",
    "weight_clipping": "max",
}
WAYS: dict[str, dict[str, Any]] = {
    "version 2": {},
    "version 1": VERSION_1,
    "one pass": {"cooperation": "features", "regulariser_share": 0.1},
    "all parameters": {"granularity": "global", "regulariser_weight": 0.01},
}


def run(
    folder: Path, place: Place, *, bits: int = 2, training: dict[str, Any] | None = None, **options: Any
) -> Trained:
    resume, budget = options.pop("resume", False), options.pop("time_budget", None)
    values = merged(
        FLOAT,
        {
            "quantization": {"weight_bits": bits, "activation_bits": bits, **options.pop("quantization", {})},
            "method": {"name": "odm", "calibration_batches": 3, **options},
            "training": {"steps_per_epoch": 4, "epochs": 2, **(training or {})},
        },
    )
    return train_on(place, values, folder, resume=resume, time_budget=budget)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_in_many_sittings_is_the_run_in_one(way: str, tmp_path: Path, place: Place) -> None:
    whole = run(tmp_path / "whole", place, **WAYS[way])
    assert not run(tmp_path / "parts", place, time_budget=0, **WAYS[way]).finished
    sittings = 1
    while not (parts := run(tmp_path / "parts", place, time_budget=0, resume=True, **WAYS[way])).finished:
        sittings += 1
    assert sittings == 7
    assert parts.sha256 == whole.sha256
    assert parts.validation_psnr == whole.validation_psnr


def test_a_run_that_would_learn_nothing_is_refused_before_it_begins(tmp_path: Path, place: Place) -> None:
    training = {"steps_per_epoch": 3, "epochs": 1}
    with pytest.raises(UserError, match=r"epochs = 1 is too short for odm: nothing is learned in the 3 steps"):
        run(tmp_path / "run", place, training=training)
    assert not (tmp_path / "run").exists()
    assert run(tmp_path / "run", place, training=training, calibration_batches=2).finished


def test_the_float_network_of_the_statistics_is_not_validated(tmp_path: Path, place: Place) -> None:
    trained = run(tmp_path / "run", place, training={"steps_per_epoch": 2, "epochs": 3})
    with (trained.folder / "log.csv").open(newline="") as file:
        rows = {int(row["step"]): row["validation_psnr"] for row in csv.DictReader(file)}
    assert rows[2] == ""
    assert float(rows[4]) < 60
    assert float(rows[6]) < 60


@pytest.mark.parametrize("way", ["version 2", "one pass"])
@pytest.mark.parametrize("kernel", ["compiled", "fused", "integer"])
def test_every_kernel_and_short_floats_train(way: str, kernel: str, tmp_path: Path, place: Place) -> None:
    precision = "float32" if kernel == "integer" else "bf16"
    training = {"kernel": kernel, "precision": precision, "gradient_clip": 1.0, "ema": 0.9}
    trained = run(tmp_path / "run", place, training=training, **WAYS[way])
    assert trained.file is not None


@pytest.mark.parametrize("cooperation", ["features", "parameters"])
def test_a_network_whose_picture_is_rounded_trains(cooperation: str, tmp_path: Path, place: Place) -> None:
    quantization = {"placement": "full", "rest": "float"}
    trained = run(tmp_path / "run", place, cooperation=cooperation, quantization=quantization)
    assert trained.finished
    assert trained.file is None


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_engine_runs_what_was_trained(bits: int, tmp_path: Path, place: Place) -> None:
    trained = run(tmp_path / "run", place, bits=bits)
    assert trained.file is not None
    model = load(trained.file)
    assert isinstance(model, QuantizedNetwork)
    check_levels(model)
    counts = level_counts(model)
    weights = [counts[f"{name}.weight"] for name, layer in model.convolutions().items() if layer.low_bit]
    assert max(weights) == 2**bits
    found = verify(model, picture=drawn_picture(3, 24, 20), progress=Silent())
    assert {row.engine for row in found} >= {"simulate", "torch", "onnxruntime", "openvino", "litert"}
    for row in found:
        assert not row.broken, row
        assert row.largest <= 4, row
        assert row.psnr > 45, row
    shapes = {"net.onnx": None, "net.tflite": (24, 20)}
    for name, shape in shapes.items():
        jobs.export(trained.file, tmp_path / name, shape=shape)
        exported = load(tmp_path / name)
        assert isinstance(exported, ExportedFile)
        rows = verify(model, exported=exported, picture=drawn_picture(3, 24, 20), progress=Silent())
        assert rows
        assert all(row.largest <= 4 and not row.broken for row in rows), rows
