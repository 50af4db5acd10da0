"""From the settings of an experiment to the network that is trained and the objective that trains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from srquant.config import SCRATCH, Experiment, NamedChoice, build
from srquant.errors import UserError, unknown
from srquant.files import sha256
from srquant.methods import METHODS
from srquant.networks import NETWORKS
from srquant.networks.info import SRNetwork
from srquant.networks.loading import load_network
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.acceleration import use_kernel
from srquant.quantizers.placement import get_placement
from srquant.training import Objective, Reconstruction


def check(experiment: Experiment) -> None:
    """Refuse what can be refused before any picture or weight is read.

    Raises:
        UserError: an unknown network, key of it, placement or method, a placement that is not for the network, or a
            quantised experiment without weights.
    """
    check_network(experiment.network)
    if experiment.quantization is not None:
        get_placement(experiment.quantization.placement).layout(experiment.network.name)
    if experiment.method is None:
        return
    if experiment.method.name not in METHODS:
        raise unknown("method", experiment.method.name, METHODS)
    build(METHODS[experiment.method.name].config_type, experiment.method.settings, "method")
    how = experiment.quantization
    if how is not None and how.exact:
        raise UserError("quantization.exact = true is for networks that are not trained; trained scales are not exact")
    if how is not None and how.rest == "int8" and experiment.method.settings.get("grid") == "official":
        raise UserError("method.grid = 'official' cannot be deployed: say method.grid = 'integer' for rest = 'int8'")
    if experiment.weights is None:
        raise UserError(
            "a quantised network is trained from float weights: name a checkpoint (--weights FILE, or 'weights' in "
            f"the file), or say weights = '{SCRATCH}' for random ones"
        )


def check_network(network: NamedChoice) -> None:
    """Refuse a network that there is not.

    Raises:
        UserError: an unknown network or key of it; the nearest name is told.
    """
    if network.name not in NETWORKS:
        raise unknown("network", network.name, NETWORKS)
    known = [field.name for field in fields(NETWORKS[network.name].config_type)]
    for key in network.settings:
        if key not in known:
            raise unknown("network key", key, known)


def start_network(experiment: Experiment) -> SRNetwork:
    """The float network that the experiment starts from.

    With weights, settings of the network that the experiment does not name are those of the checkpoint.

    Raises:
        UserError: the settings are no network, the checkpoint cannot be read, or it holds another network.
    """
    name, settings = experiment.network.name, experiment.network.settings
    kind = NETWORKS[name]
    if experiment.weights in (None, SCRATCH):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.training.seed)
            return kind.from_config(kind.config_type.from_dict(settings))
    digest = sha256_of_weights(experiment)
    if experiment.weights_sha256 not in (None, digest):
        raise UserError(f"'{experiment.weights}' holds other weights: its SHA-256 is not {experiment.weights_sha256}")
    network = load_network(Path(experiment.weights))
    found = asdict(network.config)
    if network.name != name or not all(_same(value, found.get(key)) for key, value in settings.items()):
        raise UserError(
            f"the weights do not fit: '{experiment.weights}' holds {_told(network.name, found)}; "
            f"the experiment says {_told(name, settings)}"
        )
    return network


def sha256_of_weights(experiment: Experiment) -> str | None:
    """The digest of the checkpoint that the experiment starts from; None for random weights or no such file."""
    if experiment.weights in (None, SCRATCH) or not Path(experiment.weights).is_file():
        return None
    return sha256(Path(experiment.weights))


def make_objective(experiment: Experiment, network: SRNetwork) -> Objective:
    """What the training loop trains; its `network` is the float network itself or a quantised one made from it.

    Raises:
        UserError: an unknown option of the method, the network cannot be quantised as the experiment says, or the
            training is none that the method can do its work in.
    """
    rate = experiment.training.learning_rate
    if experiment.method is None or experiment.quantization is None:
        return Reconstruction(network, rate)
    network = network.collapsed()
    quantized = QuantizedNetwork(network, experiment.quantization, trainable=True)
    method = METHODS[experiment.method.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.training.seed)
        objective = method.from_options(quantized, network, experiment.method.settings, rate)
    use_kernel(quantized, experiment.training.kernel)
    objective.check(experiment.training)
    return objective


def _same(given: Any, found: Any) -> bool:
    """Whether a setting is the one of the checkpoint; float32 files round the numbers they hold."""
    if isinstance(given, list | tuple) and isinstance(found, list | tuple):
        return len(given) == len(found) and all(map(_same, given, found))
    if isinstance(given, int | float) and isinstance(found, int | float):
        return math.isclose(given, found, rel_tol=1e-6)
    return given == found


def _told(name: str, settings: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "scale")
    return f"{name} x{settings.get('scale', '?')} ({rest})" if rest else f"{name} x{settings.get('scale', '?')}"
