"""Networks for luma in training form: trained in float, then at low bits, then deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_experiments import Place, experiment

from srquant.engines import load, open_engine
from srquant.evaluation.verification import drawn_picture
from srquant.experiments import Trained, train
from srquant.networks.info import SRNetwork
from srquant.quantizers import QuantizedNetwork
from srquant.settings import merged

TRAINING = {"epochs": 3, "steps_per_epoch": 4, "batch": 2, "patch": 8, "learning_rate": 1e-3}
NETWORKS: dict[str, dict[str, Any]] = {
    "sesr": {"name": "sesr", "scale": 2, "blocks": 2, "width": 4, "expanded": 8, "collapsed": False},
    "ecbsr": {"name": "ecbsr", "scale": 2, "blocks": 1, "width": 4, "collapsed": False},
}


def run(values: dict[str, Any], folder: Path, place: Place, **options: Any) -> Trained:
    return train(
        experiment(values), folder, data=[place.pictures], validation=place.validation, accelerator="cpu", **options
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_training_form_is_trained_and_its_plain_form_quantised(name: str, tmp_path: Path, place: Place) -> None:
    values = {"network": NETWORKS[name], "training": TRAINING}
    trained = run(values, tmp_path / "float", place)
    assert trained.file is not None
    assert trained.validation_psnr is not None
    network = load(trained.file)
    assert isinstance(network, SRNetwork)
    assert network.info.channels == 1
    assert network.collapsed() is not network, "training goes on from the form that was trained"

    low = merged(
        values,
        {"quantization": {"weight_bits": 4, "activation_bits": 4}, "method": {"name": "lsq"}},
    )
    quantised = run(low, tmp_path / "low", place, weights=trained.file)
    assert quantised.simulated_because is None
    assert quantised.file is not None
    loaded = load(quantised.file)
    assert isinstance(loaded, QuantizedNetwork)
    assert loaded.network_config["collapsed"] is True
    picture = drawn_picture(1, 12, 14)
    expected = open_engine(loaded, "reference").run(picture)
    assert expected.std() > 1
    difference = np.abs(open_engine(loaded, "simulate").run(picture).astype(int) - expected)
    assert difference.mean() < 0.5
