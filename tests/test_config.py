from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srquant.cli import commands
from srquant.config import CalibrationConfig, QuantizationConfig, build
from srquant.errors import UserError


def test_the_defaults_are_those_of_the_command_line() -> None:
    options = inspect.signature(commands.quantize).parameters
    defaults = {**QuantizationConfig().model_dump(), **CalibrationConfig().model_dump()}
    assert {name: options[name].default for name in defaults} == defaults
    assert (defaults["weight_bits"], defaults["activation_bits"], defaults["placement"]) == (8, 8, "strict")
    assert (defaults["images"], defaults["seed"], defaults["exact"]) == (100, 0, False)


def test_configs_are_frozen_and_take_no_unknown_key() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QuantizationConfig().weight_bits = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="extra"):
        QuantizationConfig(bits=4)  # pyright: ignore[reportCallIssue]


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
    ],
)
def test_a_mistake_is_told_in_one_line(model: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(model, values)
    assert "\n" not in str(error.value)
