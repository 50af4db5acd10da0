from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_experiments import DDTB, FLOAT, SIMULATED, Place, experiment, shrunk

from srquant import presets
from srquant.errors import UserError
from srquant.experiments.starting import check, make_objective, start_network
from srquant.files import sha256
from srquant.networks.loading import load_network
from srquant.training import Reconstruction


def test_random_weights_come_from_the_seed() -> None:
    states = [start_network(experiment(FLOAT, training={"seed": seed})).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.0.weight"], states[2]["head.0.weight"])
    before = torch.get_rng_state()
    start_network(experiment(FLOAT))
    assert torch.equal(before, torch.get_rng_state())


def test_keys_that_are_not_named_are_those_of_the_weights(place: Place) -> None:
    partly = experiment({"network": {"name": "edsr", "scale": 2, "width": 8}}, weights=str(place.network))
    network = start_network(partly)
    assert network.config == load_network(place.network).config
    assert network.config.blocks == 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"scale": 4},
            r"network.safetensors' holds edsr x2 \(blocks 2, width 8, .*; the experiment says edsr x4",
        ),
        ({"blocks": 16}, r"holds edsr x2 \(blocks 2, .* says edsr x2 \(blocks 16"),
        ({"mean": [1.0, 2.0, 3.0]}, r"says edsr x2 \(.*mean \[1.0, 2.0, 3.0\]"),
        ({"name": "rdn"}, "holds edsr x2 .*says rdn x2"),
    ],
)
def test_weights_of_another_network_are_refused(network: dict[str, Any], message: str, place: Place) -> None:
    with pytest.raises(UserError, match=message) as error:
        start_network(experiment(FLOAT, network=network, weights=str(place.network)))
    assert "\n" not in str(error.value)


def test_a_digest_pins_the_weights(place: Place) -> None:
    weights = str(place.network)
    pinned = experiment(FLOAT, weights=weights, weights_sha256=sha256(place.network))
    assert start_network(pinned).name == "edsr"
    with pytest.raises(UserError, match=r"holds other weights: its SHA-256 is not 0{64}"):
        start_network(experiment(FLOAT, weights=weights, weights_sha256="0" * 64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": {"name": "edrs", "scale": 2}}, "unknown network 'edrs'; .*did you mean 'edsr'"),
        ({"network": {"name": "edsr", "widht": 8}}, "unknown network key 'widht'; .*did you mean 'width'"),
        ({**DDTB, "weights": "w", "method": {"name": "dtb"}}, "unknown method 'dtb'; .*did you mean 'ddtb'"),
        (
            {**DDTB, "weights": "w", "quantization": {"placement": "dtb"}},
            "unknown placement 'dtb'; .*did you mean 'ddtb'",
        ),
        (DDTB, "a quantised network is trained from float weights: .*--weights FILE.*'scratch'"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(experiment(values))


def test_a_quantised_network_from_random_weights_has_to_be_asked_for() -> None:
    asked = experiment(DDTB, weights="scratch")
    check(asked)
    assert start_network(asked).name == "edsr"


def test_the_objective_is_that_of_the_experiment() -> None:
    network = start_network(experiment(FLOAT))
    assert isinstance(make_objective(experiment(FLOAT), network), Reconstruction)
    for values in (DDTB, SIMULATED):
        told = make_objective(experiment(values), network).describe()
        assert (told["method"], told["gate"]) == ("ddtb", values["method"]["gate"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"percentil": 99}, "'percentil'.*did you mean '(method.)?percentile'"),
        ({"percentile": 101}, "percentile = 101"),
        ({"gate": "offical"}, "gate = 'offical': .*'official'"),
    ],
)
def test_a_wrong_option_of_a_method_is_refused(method: dict[str, Any], message: str) -> None:
    wrong = experiment(DDTB, method=method)
    with pytest.raises(UserError, match=message) as error:
        make_objective(wrong, start_network(experiment(FLOAT)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_becomes_an_objective(name: str) -> None:
    preset = presets.open_experiment(name)
    small = shrunk(preset)
    check(small)
    objective = make_objective(small, start_network(small))
    assert objective.describe()["method"] == (preset.method.name if preset.method else "float")
    scale = int(preset.network.settings["scale"])
    channels = start_network(small).info.channels
    low, high = (torch.rand(2, channels, side, side) * 255 for side in (8, 8 * scale))
    objective.start_epoch(1)
    parts = objective.forward(low, high)
    assert parts["l1"].isfinite()


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match=r"nowhere.pth.*no such file"):
        start_network(experiment(FLOAT, weights=str(Path("nowhere.pth"))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": {"exact": True}}, "exact = true is for networks that are not trained"),
        ({"method": {"grid": "official"}}, "method.grid = 'official' cannot be deployed"),
        ({"method": {"gatee": "none"}}, r"DDTBConfig key 'method\.gatee'.*did you mean 'method\.gate'"),
        ({"method": {"gate": "repaired"}, "training": {"epochs": 5}}, "training.epochs = 5 is too short for ddtb"),
        (
            {"method": {"gate": "repaired", "gate_start_epoch": 2}, "quantization": {"activation_bits": 8}},
            "gates take at most 7 bit",
        ),
        (
            {"method": {"gate": "repaired", "gate_start_epoch": 2}, "quantization": {"placement": "full"}},
            "the placement 'full' rounds all tensors to few bits",
        ),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_it_is_trained(changes: dict[str, Any], message: str) -> None:
    def start() -> None:
        asked = experiment(DDTB, weights="scratch", **changes)
        check(asked)
        make_objective(asked, start_network(asked))

    with pytest.raises(UserError, match=message) as error:
        start()
    assert "\n" not in str(error.value)
