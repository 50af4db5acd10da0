from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srquant.cli import commands
from srquant.config import CalibrationConfig, Experiment, QuantizationConfig, TrainingConfig, build
from srquant.errors import UserError


def test_the_defaults_are_those_of_the_command_line() -> None:
    options = inspect.signature(commands.quantize).parameters
    defaults = {**QuantizationConfig().model_dump(exclude={"rest"}), **CalibrationConfig().model_dump()}
    assert {name: options[name].default for name in defaults} == defaults
    assert (defaults["weight_bits"], defaults["activation_bits"], defaults["placement"]) == (8, 8, "strict")
    assert (defaults["images"], defaults["seed"], defaults["exact"]) == (100, 0, False)
    assert QuantizationConfig().rest == "int8"


def test_configs_are_frozen_and_take_no_unknown_key() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QuantizationConfig().weight_bits = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="extra"):
        QuantizationConfig(bits=4)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValidationError, match="frozen"):
        TrainingConfig().epochs = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="extra"):
        TrainingConfig(epoch=4)  # pyright: ignore[reportCallIssue]


@given(st.integers(-5, 15), st.integers(-5, 15))
def test_bits_are_2_to_8(weights: int, activations: int) -> None:
    values: dict[str, object] = {"weight_bits": weights, "activation_bits": activations}
    if 2 <= weights <= 8 and 2 <= activations <= 8:
        config = build(QuantizationConfig, values)
        assert (config.weight_bits, config.activation_bits) == (weights, activations)
    else:
        wrong = "weight_bits" if not 2 <= weights <= 8 else "activation_bits"
        with pytest.raises(UserError, match=f"^{wrong} = -?[0-9]+: input should be"):
            build(QuantizationConfig, values)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (QuantizationConfig, {"weight_bit": 4}, "unknown QuantizationConfig key 'weight_bit'; .* 'weight_bits'"),
        (QuantizationConfig, {"percentile": 50}, "percentile = 50: input should be greater than 50"),
        (QuantizationConfig, {"percentile": 101}, "percentile = 101"),
        (QuantizationConfig, {"percentile": float("nan")}, "percentile = nan"),
        (QuantizationConfig, {"ranges": "mean"}, "ranges = 'mean': input should be 'minmax', 'percentile' or 'mse'"),
        (QuantizationConfig, {"weight_bits": 2.5}, "weight_bits = 2.5"),
        (CalibrationConfig, {"images": 0}, "images = 0"),
        (CalibrationConfig, {"crop": 7}, "crop = 7"),
        (CalibrationConfig, {"seed": -1}, "seed = -1"),
        (CalibrationConfig, {"sead": 1}, "did you mean 'seed'"),
        (QuantizationConfig, {"rest": "int4"}, "rest = 'int4': input should be 'int8' or 'float'"),
        (TrainingConfig, {"epochs": 0}, "epochs = 0"),
        (TrainingConfig, {"learning_rate": float("inf")}, "learning_rate = inf: input should be a finite number"),
        (TrainingConfig, {"learning_rate": -1e-4}, "learning_rate = -0.0001"),
        (TrainingConfig, {"betas": [0.9]}, "betas"),
        (TrainingConfig, {"betas": [0.9, 1.0]}, "betas.1 = 1.0: input should be less than 1"),
        (TrainingConfig, {"betas": 0.9}, "betas = 0.9: input should be a list"),
        (TrainingConfig, {"schedule": "cosin"}, "schedule = 'cosin': .*'cosine'"),
        (TrainingConfig, {"precision": "fp16"}, "precision = 'fp16': input should be 'float32' or 'bf16'"),
        (TrainingConfig, {"ema": 1.0}, "ema = 1.0"),
        (TrainingConfig, {"gradient_clip": 0}, "gradient_clip = 0"),
        (TrainingConfig, {"unreadable": "ignore"}, "unreadable = 'ignore'"),
    ],
)
def test_a_mistake_is_told_in_one_line(model: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(model, values)
    assert "\n" not in str(error.value)


NETWORK: dict[str, Any] = {"network": {"name": "edsr", "scale": 2}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "^the key 'network' is missing$"),
        ({"network": {"scale": 2}}, "^the key 'network.name' is missing$"),
        ({"network": "edsr"}, "network = 'edsr': input should be a table of keys"),
        ({**NETWORK, "trainning": {}}, "unknown Experiment key 'trainning'; .*did you mean 'training'"),
        ({**NETWORK, "training": {"epoch": 3}}, "unknown TrainingConfig key 'training.epoch'; .* 'training.epochs'"),
        ({**NETWORK, "epochs": 3}, "unknown Experiment key 'epochs'; .*did you mean 'training.epochs'"),
        ({**NETWORK, "training": {"weight_bits": 3}}, "did you mean 'quantization.weight_bits'"),
        ({**NETWORK, "training": {"epochs": "many"}}, "^training.epochs = 'many': input should be a valid integer"),
        ({**NETWORK, "quantization": {"weight_bits": 1}}, "^quantization.weight_bits = 1"),
        ({**NETWORK, "quantization": {}}, r"^\[quantization\] without \[method\]"),
        ({**NETWORK, "method": {"name": "ddtb"}}, r"^\[method\] without \[quantization\]"),
        ({**NETWORK, "data": {"train": "DIV2K"}}, "^data.train = 'DIV2K': input should be a list$"),
        ({**NETWORK, "paper": {"psnr": {}}}, "^the key 'paper.source' is missing$"),
    ],
)
def test_a_mistake_inside_an_experiment_is_told_with_its_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(Experiment, values)
    assert "\n" not in str(error.value)


def test_networks_and_methods_keep_the_settings_that_only_they_know() -> None:
    method = {"name": "ddtb", "percentile": 95}
    experiment = build(Experiment, {**NETWORK, "quantization": {"weight_bits": 2}, "method": method})
    assert experiment.network.settings == {"scale": 2}
    assert experiment.method is not None
    assert (experiment.method.name, experiment.method.settings) == ("ddtb", {"percentile": 95})


def test_the_path_of_a_mistake_starts_where_it_was_told_to() -> None:
    with pytest.raises(UserError, match=r"unknown CalibrationConfig key 'method.imges'.*did you mean 'method.images'"):
        build(CalibrationConfig, {"imges": 3}, within="method")
    with pytest.raises(UserError, match=r"^method.images = 0"):
        build(CalibrationConfig, {"images": 0}, within="method")
