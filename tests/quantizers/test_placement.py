from __future__ import annotations

import operator
import time

import pytest
import torch
from small_quantized import CONFIGS, SIX, float_network, noise, quantized_network, tensor
from torch import nn

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels, level_counts
from srquant.networks import NETWORKS, EDSRConfig, IMDNConfig, NetworkConfig, SRNetwork
from srquant.networks.tracing import trace
from srquant.quantizers import PLACEMENTS, QuantizedNetwork
from srquant.quantizers.folding import fold
from srquant.quantizers.grid import IMAGE_GRID
from srquant.quantizers.insertion import insert_quantizers
from srquant.quantizers.placement import get_placement
from srquant.quantizers.structure import Structure

PAIRS = [
    (key, name)
    for key in CONFIGS
    for name, placement in PLACEMENTS.items()
    if not placement.layouts or key.split("_")[0] in placement.layouts
]
"""Every small network with every placement that is defined for it."""


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


@pytest.mark.parametrize(("key", "placement"), PAIRS)
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
    called = {node.target for node in trace(network).graph.nodes if node.op == "call_module"}  # not inside attentions
    wanted = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and name in called}
    assert set(report.weight_bits) == wanted
    assert set(report.weight_bits.values()) == {4, 8}


def bits_of(key: str, placement: str) -> dict[str, int]:
    network = quantized(key, placement, 2)
    inputs = {name: conv.source for name, conv in network.convolutions().items()}
    return {name: source.bits for name, source in inputs.items() if source is not None}


def test_ddtb_rounds_the_residual_blocks_of_edsr_and_nothing_else() -> None:
    report = quantized("edsr_x2", "ddtb", 2).placement
    low = {name for name, bits in report.weight_bits.items() if bits == 2}
    assert low == {f"body.{b}.body.{c}" for b in (0, 1) for c in (0, 2)}  # the convolution behind the blocks is not
    two = {name for name, bits in report.activation_bits.items() if bits == 2}
    inputs, hidden, outputs = {"head_0_2bit", "add_2bit"}, ("body_0_body_1", "body_1_body_1"), "body_{}_body_2"
    assert two == {*inputs, *hidden, *(outputs.format(b) for b in (0, 1))}
    assert all(bits_of("edsr_x2", "ddtb")[name] == 2 for name in low)


def test_ddtb_official_lets_the_first_convolution_of_a_block_read_the_stream() -> None:
    clean, official = bits_of("edsr_x2", "ddtb"), bits_of("edsr_x2", "ddtb-official")
    assert {name for name in clean if clean[name] != official[name]} == {"body.0.body.0", "body.1.body.0"}
    rdn_clean, rdn_official = bits_of("rdn_x2", "ddtb"), bits_of("rdn_x2", "ddtb-official")
    assert {name for name in rdn_clean if rdn_clean[name] != rdn_official[name]} == {"GFF.1"}


def test_ddtb_carries_the_rounded_block_input_over_the_skip() -> None:
    graph = quantized("edsr_x2", "ddtb-official", 2).graph.graph
    first, second, long = graph.find_nodes(op="call_function", target=operator.add)
    assert {str(node.target) for node in first.args} == {"quantizers.body_0_body_2", "quantizers.head_0_2bit"}
    assert {str(node.target) for node in second.args} == {"quantizers.body_1_body_2", "quantizers.add_2bit"}
    assert {str(node.target) for node in long.args} == {"quantizers.body_2", "quantizers.head_0"}


def test_ddtb_leaves_the_skips_of_srresnet_alone() -> None:
    network = quantized("srresnet_x4", "ddtb", 2)
    assert {name for name, bits in network.placement.weight_bits.items() if bits == 2} == {
        "body.0.conv1",
        "body.0.conv2",
    }
    block, _ = network.graph.graph.find_nodes(op="call_function", target=operator.add)
    assert all(network.graph.get_submodule(str(node.target)).bits == 8 for node in block.args)


def test_a_placement_told_by_network_refuses_the_others() -> None:
    with pytest.raises(UserError, match="'ddtb' is defined for edsr, rdn, srresnet, not for 'imdn'"):
        quantized("imdn_x2", "ddtb", 2)


@pytest.mark.parametrize(("key", "placement"), PAIRS)
def test_with_the_rest_in_float_the_network_computes_as_before(key: str, placement: str) -> None:
    config = QuantizationConfig(weight_bits=2, activation_bits=2, placement=placement, rest="float")
    network = float_network(key)
    simulation = QuantizedNetwork(network, config, trainable=True)
    assert set(simulation.placement.weight_bits.values()) == {2}
    assert set(simulation.placement.activation_bits.values()) == {2}
    assert "everything else in float32 (simulation only)" in str(simulation.placement)
    picture = tensor(noise(12, 14))
    with torch.inference_mode():
        expected = network(picture / 255 * network.info.peak) * 255 / network.info.peak
        torch.testing.assert_close(simulation(picture), expected, rtol=1e-4, atol=2e-3)


def test_the_rest_in_float_is_only_for_training() -> None:
    with pytest.raises(UserError, match="rest = 'float' is a simulation"):
        QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(rest="float"))


@pytest.mark.parametrize(("key", "placement"), PAIRS)
def test_a_trainable_network_has_the_tensors_of_the_deployed_one(key: str, placement: str) -> None:
    config = QuantizationConfig(weight_bits=2, activation_bits=2, placement=placement)
    trainable = QuantizedNetwork(float_network(key), config, trainable=True)
    deployed = QuantizedNetwork(float_network(key), config)
    assert trainable.placement == deployed.placement
    assert {n: q.bits for n, q in trainable.activation_quantizers().items()} == {
        n: q.bits for n, q in deployed.activation_quantizers().items()
    }
    assert all(q.channels > 0 for q in trainable.activation_quantizers().values())


def test_layers_that_stay_in_float_are_reported() -> None:
    report = quantized("imdn_x2", "strict", 8).placement
    attention = [name for name, kind in report.left_in_float.items() if kind == "ContrastAttention"]
    assert attention == ["imdb1_cca", "imdb2_cca"]
    assert "; in float between 8-bit tensors: 2 ContrastAttention, " in str(report)
    for key in (*SIX, "plainusr_x3", "rlfn_x2", "span_x2"):
        kinds = set(quantized(key, "strict", 8).placement.left_in_float.values())
        wanted = {
            "imdn": {"ContrastAttention", "LeakyReLU"},
            "srresnet": {"PReLU"},
            "plainusr": {"LocalImportance", "LeakyReLU"},
            "rlfn": {"SpatialAttention", "LeakyReLU"},
        }
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


@pytest.mark.parametrize("layer", [nn.Softplus(), nn.GELU(), nn.AvgPool2d(3, 1, 1), nn.ConvTranspose2d(8, 8, 1)])
def test_a_layer_without_an_integer_form_is_named_with_its_type(layer: nn.Module) -> None:
    graph = fold(WithLayer(layer))
    with pytest.raises(UserError, match=f"'strange' .*{type(layer).__name__}.* write the network with") as error:
        insert_quantizers(graph, "edsr", QuantizationConfig())
    assert "\n" not in str(error.value)
    assert "LeakyReLU" in str(error.value)


def test_a_network_with_an_unsupported_layer_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"'strange' .*GELU"):
        QuantizedNetwork(WithLayer(nn.GELU()), QuantizationConfig())


class WithFunction(WithLayer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.last(torch.sigmoid(self.first(x))))


def test_a_function_without_an_integer_form_is_named() -> None:
    graph = fold(WithFunction(nn.Identity()))
    with pytest.raises(UserError, match="operation sigmoid"):
        insert_quantizers(graph, "edsr", QuantizationConfig())


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


@pytest.mark.parametrize(
    "config", [EDSRConfig(scale=2, blocks=48, width=4), IMDNConfig(scale=2, blocks=6, width=16)], ids=["edsr", "imdn"]
)
def test_stages_of_deep_networks_are_found_in_one_pass(config: NetworkConfig) -> None:
    """Every residual addition doubles the paths through a network: walking them all would take for ever."""
    network = NETWORKS["edsr" if isinstance(config, EDSRConfig) else "imdn"].from_config(config).eval()
    structure = Structure(fold(network))
    started = time.process_time()
    stages = [structure.stage(conv) for conv in structure.convolutions()]
    assert time.process_time() - started < 5
    assert set(stages) == {"head", "body", "tail"}
