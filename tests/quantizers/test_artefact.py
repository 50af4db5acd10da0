from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_quantized import CONFIGS, SIX, calibrated, float_network, noise, quantized_network, tensor

import srquant
from srquant.config import QuantizationConfig
from srquant.engines import load
from srquant.errors import UserError
from srquant.networks.loading import save_network
from srquant.quantizers import QuantizedNetwork, load_artefact, save_artefact
from srquant.quantizers.artefact import METADATA_KEY, is_artefact


def simulate(network: QuantizedNetwork, picture: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(picture)


@pytest.mark.parametrize("exact", [False, True], ids=["any", "exact"])
@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("key", SIX)
def test_an_artefact_loads_back_to_the_same_simulation(key: str, bits: int, exact: bool, tmp_path: Path) -> None:
    network = quantized_network(key, bits, exact, "full" if bits == 2 else "strict")
    path = tmp_path / "a.safetensors"
    save_artefact(network, path)
    assert is_artefact(path)
    loaded = load_artefact(path)
    for shape in ((9, 14), (1, 1)):
        picture = tensor(noise(*shape, seed=11))
        expected = simulate(network, picture)
        assert torch.equal(simulate(loaded, picture), expected)
    assert loaded.info == network.info
    assert loaded.quantization == network.quantization
    assert loaded.placement == network.placement
    assert loaded.calibration == network.calibration
    assert loaded.halo == network.halo
    again = tmp_path / "b.safetensors"
    save_artefact(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_an_artefact_of_a_network_that_computed_in_another_order_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = quantized_network("edsr_x2")
    path = tmp_path / "a.safetensors"
    save_artefact(network, path)
    load_artefact(path)
    inside = type(next(m for m in float_network("edsr_x2").modules() if type(m).__name__ == "ResidualBlock"))

    def other_way_round(self: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
        return values + self.body(values)

    monkeypatch.setattr(inside, "forward", other_way_round)
    with pytest.raises(UserError, match="computes in another order; quantise the float network again"):
        load_artefact(path)


def test_the_same_inputs_twice_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.safetensors"
        save_artefact(calibrated(float_network("srresnet_x4"), QuantizationConfig(ranges="mse")), path)
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("key", CONFIGS)
def test_the_header_says_what_the_file_is(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    network = quantized_network(key, 4)
    save_artefact(network, path)
    told, tensors = contents(path)
    assert told["format"] == 3
    assert told["version"] == srquant.__version__
    assert told["network"] == network.info.name
    assert told["network_config"]["scale"] == network.info.scale
    assert told["quantization"] == network.quantization.model_dump()
    assert told["method"] == "post-training"
    assert told["placement"] == str(network.placement)
    assert told["calibration"] == network.calibration
    for name, conv in network.convolutions().items():
        codes = conv.weight.numel()
        assert tensors[f"{name}.weight"].dtype == torch.uint8
        assert tensors[f"{name}.weight"].numel() == -(-codes * conv.bits // 8)
        assert tensors[f"{name}.bias"].dtype == torch.int32


def test_packing_makes_a_low_bit_file_smaller(tmp_path: Path) -> None:
    sizes = {}
    for bits in (8, 2):
        network = quantized_network("edsr_x2", bits, placement="full")
        sizes[bits] = network.storage_bytes()
    weights = sum(conv.weight.numel() for conv in quantized_network("edsr_x2").convolutions().values())
    assert sizes[8] - sizes[2] == pytest.approx(weights * 6 / 8, abs=10)


def test_an_artefact_is_not_a_float_checkpoint_and_the_other_way_round(tmp_path: Path) -> None:
    quantized, plain = tmp_path / "q.safetensors", tmp_path / "f.safetensors"
    save_artefact(quantized_network("edsr_x2"), quantized)
    save_network(float_network("edsr_x2"), plain)
    assert is_artefact(quantized)
    assert not is_artefact(plain)
    assert not is_artefact(tmp_path)
    assert not is_artefact(tmp_path / "missing.safetensors")
    renamed = tmp_path / "q.pth"
    renamed.write_bytes(quantized.read_bytes())
    assert not is_artefact(renamed)
    assert isinstance(load(quantized), QuantizedNetwork)
    assert type(load(plain)) is type(float_network("edsr_x2"))
    with pytest.raises(UserError, match="not a readable quantised artefact"):
        load_artefact(plain)
    with pytest.raises(UserError):
        load_artefact(tmp_path / "missing.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artefact") / "whole.safetensors"
    save_artefact(quantized_network("imdn_x2", 2), path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_a_user_error(where: float, whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(where * len(content))])
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        load_artefact(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_a_changed_byte_loads_or_is_a_user_error(data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    content = bytearray(whole.read_bytes())
    size = int.from_bytes(content[:8], "little")
    at = data.draw(st.one_of(st.integers(0, size + 8), st.integers(0, len(content) - 1)))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    try:
        loaded = load(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert isinstance(loaded, QuantizedNetwork)


def contents(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return json.loads(file.metadata()[METADATA_KEY]), {name: file.get_tensor(name) for name in names}


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def _set(*keys: str, to: Any) -> Change:
    def change(told: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        for key in keys[:-1]:
            told = told[key]
        told[keys[-1]] = to

    return change


def _without(key: str) -> Change:
    return lambda told, _: told.pop(key)


def _tensor(name: str, value: torch.Tensor | None) -> Change:
    def change(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


TAMPERED: dict[str, Change] = {
    "other weight bits": _set("quantization", "weight_bits", to=4),
    "bits out of bounds": _set("quantization", "weight_bits", to=9),
    "other placement": _set("quantization", "placement", to="full"),
    "unknown placement": _set("quantization", "placement", to="stric"),
    "unknown setting": _set("quantization", "magic", to=1),
    "settings are a number": _set("quantization", to=3),
    "unknown network": _set("network", to="edrs"),
    "network is a list": _set("network", to=["edsr"]),
    "no network": _without("network"),
    "other depth": _set("network_config", "blocks", to=3),
    "other width": _set("network_config", "width", to=16),
    "impossible scale": _set("network_config", "scale", to=5),
    "a billion blocks": _set("network_config", "blocks", to=10**9),
    "config is a text": _set("network_config", to="small"),
    "newer format": _set("format", to=4),
    "no format": _without("format"),
    "no calibration": _without("calibration"),
    "no joined sum": _without("joined_sum"),
    "surplus tensor": _tensor("extra", torch.zeros(2)),
    "missing weight": _tensor("head.0.weight", None),
    "missing scale": _tensor("head_0.scale", None),
    "short weight": _tensor("head.0.weight", torch.zeros(5, dtype=torch.uint8)),
    "weight of floats": _tensor("head.0.weight", torch.zeros(8 * 3 * 9)),
    "bias of another length": _tensor("head.0.bias", torch.zeros(3, dtype=torch.int32)),
    "steps of another length": _tensor("head.0.steps", torch.ones(3)),
    "scale 0": _tensor("head_0.scale", torch.tensor(0.0)),
    "scale negative": _tensor("head_0.scale", torch.tensor(-1.0)),
    "scale NaN": _tensor("head_0.scale", torch.tensor(float("nan"))),
    "scale infinite": _tensor("head_0.scale", torch.tensor(float("inf"))),
    "two scales": _tensor("head_0.scale", torch.ones(2)),
    "zero point negative": _tensor("head_0.zero_point", torch.tensor(-1, dtype=torch.int32)),
    "zero point 256": _tensor("head_0.zero_point", torch.tensor(256, dtype=torch.int32)),
    "steps NaN": _tensor("head.0.steps", torch.full((8,), float("nan"))),
    "steps 0": _tensor("head.0.steps", torch.zeros(8)),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_artefact_is_a_user_error(change: Change, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_artefact(quantized_network("edsr_x2", 2), path)
    told, tensors = contents(path)
    save_file(tensors, path, {METADATA_KEY: json.dumps(told)})
    load_artefact(path)  # untouched, it loads
    change(told, tensors)
    save_file(tensors, path, {METADATA_KEY: json.dumps(told)})
    with pytest.raises(UserError) as error:
        load_artefact(path)
    assert "\n" not in str(error.value)
    assert "a.safetensors" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"edsr"'])
def test_a_header_that_is_no_description_is_a_user_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, {METADATA_KEY: text})
    assert is_artefact(path)
    with pytest.raises(UserError):
        load(path)


def test_an_artefact_is_not_written_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        save_artefact(quantized_network("edsr_x2"), tmp_path / "missing" / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_the_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_artefact(quantized_network("abpn_x3"), path)
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file is damaged"):
        load_artefact(path)
