from __future__ import annotations

import pytest
import torch
from small_quantized import CONFIGS, SIX, float_network, noise, quantized_network, tensor
from torch import nn

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels, level_counts
from srquant.networks import EDSRConfig, SRNetwork
from srquant.quantizers import PLACEMENTS, QuantizedNetwork
from srquant.quantizers.folding import fold
from srquant.quantizers.grid import IMAGE_GRID
from srquant.quantizers.insertion import insert_quantizers
from srquant.quantizers.placement import get_placement


def quantized(key: str, placement: str, bits: int) -> QuantizedNetwork:
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement=placement)
    return QuantizedNetwork(float_network(key), config)


def test_strict_keeps_head_tail_and_stream_at_eight_bit() -> None:
    report = quantized("edsr_x2", "strict", 2).placement
    body = {name for name in report.weight_bits if name.startswith("body")}
    # the last body convolution meets nothing but the long addition before the tail's own convolution
    assert body == {f"body.{b}.body.{c}" for b in (0, 1) for c in (0, 2)} | {"body.2"}
    assert {name: bits for name, bits in report.weight_bits.items() if name not in body} == {
        "head.0": 8,
        "tail.0.0": 8,
        "tail.1": 8,
    }
    assert all(report.weight_bits[name] == 2 for name in body)
    assert not report.left_in_float


def test_strict_rounds_only_the_inputs_of_low_bit_convolutions() -> None:
    network = quantized_network("edsr_x2", 2, placement="strict")
    bits = {name: conv.bits for name, conv in network.convolutions().items()}
    for name, conv in network.convolutions().items():
        source = conv._source[0]
        assert source.bits == bits[name], f"{name} reads {source.bits} bit"
    stream = [q.bits for q in network.activation_quantizers().values()]
    assert set(stream) == {2, 8}


def test_full_puts_the_requested_bits_everywhere_but_on_the_picture() -> None:
    network = quantized("edsr_x2", "full", 2)
    assert set(network.placement.weight_bits.values()) == {2}
    eight = [name for name, bits in network.placement.activation_bits.items() if bits == 8]
    assert len(eight) == 2
    fixed = [name for name, q in network.activation_quantizers().items() if q.fixed]
    assert sorted(fixed) == sorted(eight)
    assert all(network.activation_quantizers()[name].grid == IMAGE_GRID for name in fixed)


@pytest.mark.parametrize("key", CONFIGS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_at_eight_bit_every_placement_is_the_same(key: str, placement: str) -> None:
    report = quantized(key, placement, 8).placement
    assert set(report.weight_bits.values()) == {8}
    assert set(report.activation_bits.values()) == {8}
    assert report.placement == placement
    assert str(report).startswith(f"{placement}: {len(report.weight_bits)} convolutions at 8 bit, ")


@pytest.mark.parametrize("key", CONFIGS)
def test_every_convolution_of_the_network_has_an_entry(key: str) -> None:
    network = float_network(key)
    report = quantized(key, "strict", 4).placement
    wanted = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and ".cca." not in name  # attention is listed as float
    }
    assert set(report.weight_bits) == wanted
    assert set(report.weight_bits.values()) == {4, 8}


def test_layers_that_stay_in_float_are_reported() -> None:
    report = quantized("imdn_x2", "strict", 8).placement
    attention = [name for name, kind in report.left_in_float.items() if kind == "ContrastAttention"]
    assert attention == ["imdb1_cca", "imdb2_cca"]
    assert "; in float between 8-bit tensors: 2 ContrastAttention, " in str(report)
    for key in SIX:
        kinds = set(quantized(key, "strict", 8).placement.left_in_float.values())
        wanted = {"imdn": {"ContrastAttention", "LeakyReLU"}, "srresnet": {"PReLU"}}
        assert kinds == wanted.get(key.split("_")[0], set()), key


def test_an_unknown_placement_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown placement 'strickt'; known: .*; did you mean 'strict'?"):
        get_placement("strickt")
    with pytest.raises(UserError, match="did you mean 'full'"):
        QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(placement="ful"))


class WithLayer(SRNetwork):
    """A small network with a layer that has no integer form."""

    name = "edsr"
    config_type = EDSRConfig

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(EDSRConfig(scale=2, blocks=1, width=4))
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.strange = layer
        self.last = nn.Conv2d(8, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.last(self.strange(self.first(x))))


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.GELU(), nn.AvgPool2d(3, 1, 1), nn.ConvTranspose2d(8, 8, 1)])
def test_a_layer_without_an_integer_form_is_named_with_its_type(layer: nn.Module) -> None:
    graph = fold(WithLayer(layer))
    with pytest.raises(UserError, match=f"'strange' .*{type(layer).__name__}") as error:
        insert_quantizers(graph, PLACEMENTS["strict"], 8, 8)
    assert "\n" not in str(error.value)


def test_a_network_with_an_unsupported_layer_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"'strange' .*GELU"):
        QuantizedNetwork(WithLayer(nn.GELU()), QuantizationConfig())


class WithFunction(WithLayer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.last(torch.sigmoid(self.first(x))))


def test_a_function_without_an_integer_form_is_named() -> None:
    graph = fold(WithFunction(nn.Identity()))
    with pytest.raises(UserError, match="operation sigmoid"):
        insert_quantizers(graph, PLACEMENTS["strict"], 8, 8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_tensor_takes_more_codes_than_its_bits_hold(bits: int, placement: str) -> None:
    network = quantized_network("edsr_x2", bits, placement=placement)
    counts = level_counts(network)
    allowed = dict(network.placement.activation_bits)
    allowed |= {f"{name}.weight": b for name, b in network.placement.weight_bits.items()}
    assert counts.keys() == allowed.keys()
    for name, count in counts.items():
        assert 1 <= count <= 2 ** allowed[name], name
    assert max(counts.values()) > 100 if bits == 8 else min(counts.values()) <= 2**bits
    check_levels(network)


def test_the_level_check_notices_a_tensor_that_leaves_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    network = quantized_network("edsr_x2", 2)
    monkeypatch.setattr(type(next(iter(network.activation_quantizers().values()))), "forward", lambda self, x: x * 1.01)
    with pytest.raises(RuntimeError, match=r"uses .* codes, more than . bits hold"):
        check_levels(network)


@pytest.mark.parametrize("key", CONFIGS)
def test_pictures_go_in_and_come_out_as_pixel_values(key: str) -> None:
    network = quantized_network(key, 4)
    with torch.inference_mode():
        enlarged = network(tensor(noise(6, 5)))
    assert enlarged.shape == (1, 3, 6 * network.info.scale, 5 * network.info.scale)
    assert torch.equal(enlarged, enlarged.round())
    assert enlarged.min() >= 0
    assert enlarged.max() <= 255
