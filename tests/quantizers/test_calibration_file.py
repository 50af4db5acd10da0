from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_quantized import float_network, noise, tensor

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork, save_artefact
from srquant.quantizers.calibration import quantize_network
from srquant.quantizers.calibration_file import (
    CalibrationFile,
    calibration_file,
    quantize_with,
    read_calibration_file,
    weights_sha256,
)

KEYS = ("edsr_x2", "srresnet_x4", "rdn_x2", "imdn_x2", "abpn_x3", "xlsr_x3")


def quantized(key: str, **changes: Any) -> QuantizedNetwork:
    crops = [tensor(noise(16, 18, seed)).byte() for seed in range(3)]
    network = quantize_network(float_network(key), QuantizationConfig(**changes), crops, Silent())
    network.calibration = {"pictures": [{"file": "p0.png"}], "seed": 0}
    return network


def told(network: QuantizedNetwork, key: str) -> CalibrationFile:
    return calibration_file(network, weights_sha256(float_network(key)))


def tensors(network: QuantizedNetwork, path: Path) -> bytes:
    """The artefact without the record of where its ranges came from."""
    network.calibration = {}
    save_artefact(network, path)
    return path.read_bytes()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("equalize", [False, True])
def test_a_network_made_from_the_file_is_the_calibrated_one(key: str, equalize: bool, tmp_path: Path) -> None:
    network = quantized(key, equalize=equalize, weight_rounding="nearest")
    if network.equalized:
        assert network.channel_factors
    path = tmp_path / "ranges.json"
    told(network, key).save(path)
    again = quantize_with(float_network(key), read_calibration_file(path))
    assert again.calibration.pop("ranges_file_sha256") == read_calibration_file(path).sha256()
    assert again.calibration == network.calibration
    assert tensors(again, tmp_path / "a.safetensors") == tensors(network, tmp_path / "b.safetensors")


def test_equalised_channels_are_written_down() -> None:
    """Channels of very unlike range: equalisation must help, and the file must carry it."""
    network = float_network("edsr_x2")
    crops = [tensor(noise(16, 18, seed)) for seed in range(2)]
    equalized = QuantizedNetwork(network, QuantizationConfig(), equalized_on=crops)
    assert equalized.channel_factors["head.0"] != (1.0,) * 8
    equalized.calibrate(lambda: crops)
    file = told(equalized, "edsr_x2")
    again = quantize_with(network, CalibrationFile.model_validate_json(file.to_json()))
    assert again.equalized
    for name, convolution in equalized.convolutions().items():
        assert torch.equal(again.convolutions()[name].codes().weight, convolution.codes().weight)
        assert torch.equal(again.convolutions()[name].codes().steps, convolution.codes().steps)


def test_the_same_calibration_gives_the_same_text() -> None:
    one, two = (told(quantized("abpn_x3"), "abpn_x3").to_json() for _ in range(2))
    assert one == two
    ranges = json.loads(one)["ranges"]
    assert ranges["x"] == ranges["add"] == {"lower": 0.0, "upper": 255.0, "chosen": "fixed"}
    assert ranges["body_1"]["chosen"] == "percentile 99.997"
    other = told(quantized("abpn_x3", ranges="mse"), "abpn_x3")
    assert other.ranges["body_1"].chosen == "mse"


def test_ranges_widened_for_black_and_white_say_so_also_when_read_back() -> None:
    network = quantized("imdn_x2", equalize=False, weight_rounding="nearest")
    file = told(network, "imdn_x2")
    chosen = {name: given.chosen for name, given in file.ranges.items()}
    labels = {"percentile 99.997, widened for black and white", "percentile 99.997", "fixed"}
    assert set(chosen.values()) == labels
    assert {name for name, label in chosen.items() if "widened" in label} == network.widened
    again = quantize_with(float_network("imdn_x2"), file)
    assert {name: given.chosen for name, given in told(again, "imdn_x2").ranges.items()} == chosen


def test_the_digest_is_that_of_the_weights() -> None:
    one, other = float_network("abpn_x3"), float_network("xlsr_x3")
    assert weights_sha256(one) == weights_sha256(one) != weights_sha256(other)


def edited(tmp_path: Path, **changes: Any) -> CalibrationFile:
    """The file of an ABPN with some keys replaced, or, by None, taken out, and read again."""
    plain = json.loads(told(quantized("abpn_x3", equalize=False), "abpn_x3").to_json())
    for path, value in changes.items():
        table, *names = plain, *path.split("__")
        for name in names[:-1]:
            table = table[name]
        if value is None:
            del table[names[-1]]
        else:
            table[names[-1]] = value
    target = tmp_path / "edited.json"
    target.write_text(json.dumps(plain))
    return read_calibration_file(target)


def test_a_range_changed_by_hand_counts(tmp_path: Path) -> None:
    file = edited(tmp_path, ranges__body_1={"lower": 0.0, "upper": 51.0}, quantization__weight_bits=4)
    network = quantize_with(float_network("abpn_x3"), file)
    assert network.activation_quantizers()["body_1"].deployed_grid().upper == pytest.approx(51.0)
    assert network.quantization.weight_bits == 4
    assert network.ranges["body_1"] == (0.0, 51.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges__body_1": None}, "the range of 'body_1' is missing"),
        ({"ranges__body_l": {"lower": 0, "upper": 1}}, "unknown tensor 'body_l'; .*did you mean 'body_"),
        ({"ranges__body_1__lower": 500.0}, r"the range of 'body_1' is 500.0\.\..*: finite as float32, lower end first"),
        ({"ranges__body_1__upper": 1e300}, r"the range of 'body_1' is 0.0\.\.1e\+300; allowed: finite as float32"),
        ({"ranges__body_1__lower": -1e39}, r"the range of 'body_1' is -1e\+39\.\..*; allowed: finite as float32"),
        ({"calibration__pictures": 5}, "edited.json': calibration.pictures = 5: allowed is a list with a table for"),
        ({"calibration__pictures": ["p0.png"]}, r"calibration.pictures = \['p0.png'\]: allowed is a list with"),
        ({"ranges__body_1__upper": float("inf")}, "ranges.body_1.upper = inf: input should be a finite number"),
        ({"ranges__body_1__upper": float("nan")}, "ranges.body_1.upper = nan: input should be a finite number"),
        ({"ranges__body_1__upper": "wide"}, "ranges.body_1.upper = 'wide': input should be a valid number"),
        ({"ranges__body_1__uper": 3}, "ranges.body_1.uper = 3: extra inputs are not permitted"),
        ({"ranges__add__upper": 254.0}, "the grid of 'add' is fixed: it has no range to choose"),
        ({"rangs": {}}, "unknown CalibrationFile key 'rangs'; .*did you mean 'ranges'"),
        ({"quantization__weight_bit": 4}, "unknown QuantizationConfig key .*did you mean 'quantization.weight_bits'"),
        ({"quantization__weight_bits": 9}, "quantization.weight_bits = 9"),
        ({"format": 2}, "format = 2: input should be 1"),
        ({"ranges": None}, "the key 'ranges' is missing"),
        ({"network": "xlsr"}, r"those of another network: xlsr \(scale=3, .*\), not abpn \(scale=3"),
        ({"network_config__scale": 2}, r"those of another network: abpn \(scale=2"),
        ({"channel_factors": {"body.0": [1.0]}}, "'body.0' has 1 channel factors, not 8"),
        ({"channel_factors": {"body.1": [1.0]}}, "unknown convolution 'body.1'"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        quantize_with(float_network("abpn_x3"), edited(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9])
def test_an_impossible_channel_factor_is_refused(value: float) -> None:
    network = QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(), equalized_on=[tensor(noise(9, 9))])
    factors = dict(network.channel_factors)
    name = next(name for name, each in factors.items() if set(each) != {1.0})
    factors[name] = (value, *factors[name][1:])
    with pytest.raises(UserError, match=f"a channel factor of '{name}' is not within"):
        QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(), channel_factors=factors)


def test_channels_that_are_added_share_their_factor() -> None:
    network = QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(), equalized_on=[tensor(noise(9, 9))])
    factors = dict(network.channel_factors)
    factors["head.0"] = tuple(2 * factor for factor in factors["head.0"])
    with pytest.raises(UserError, match="differ from those of channels that it is added to"):
        QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(), channel_factors=factors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no calibration file: "),
        ("[1]", "it holds no table of keys"),
        ("\x00", "is no calibration file"),
        ("[" * 100_000, "is no calibration file"),
        pytest.param('{"format": ' + "1" * 5000 + "}", "is no calibration file", id="too many digits"),
        pytest.param('{"format": ' + "1" * 4000 + "}", "format = 1111.*: ", id="many digits"),
    ],
)
def test_a_file_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_calibration_file(path)
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        read_calibration_file(tmp_path / "missing.json")
