from __future__ import annotations

import numpy as np
import pytest
import torch
from small_quantized import CONFIGS, SIX, build, calibrated, noise, quantized_network, tensor

from srquant.config import QuantizationConfig
from srquant.integer import IntegerGraph, lower, reference
from srquant.integer import graph as ops
from srquant.networks import ABPN, ABPNConfig, EDSRConfig
from srquant.quantizers import QuantizedNetwork

SIZES = [(13, 11), (1, 1), (1, 6), (5, 2)]


def simulated(network: QuantizedNetwork, picture: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        values = network(tensor(picture))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(values, values.round())
    return values.astype(np.uint8)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("key", CONFIGS)
def test_with_exact_scales_the_reference_is_the_simulation_bit_for_bit(key: str, bits: int) -> None:
    network = quantized_network(key, bits, True)
    graph = lower(network)
    for size in SIZES:
        picture = noise(*size, seed=4)
        assert np.array_equal(reference.run(graph, picture), simulated(network, picture)), size


@pytest.mark.parametrize("placement", ["strict", "full"])
@pytest.mark.parametrize("key", CONFIGS)
def test_with_any_scales_the_reference_is_close_to_the_simulation(key: str, placement: str) -> None:
    network = quantized_network(key, 8, False, placement)
    picture = noise(32, 28, seed=8)
    found, wanted = reference.run(lower(network), picture).astype(float), simulated(network, picture).astype(float)
    assert wanted.std() > 5, "the test needs a network that does something"
    error = np.square(found - wanted).mean()
    assert error == 0 or 10 * np.log10(255**2 / error) > 45


def test_an_edsr_lowers_to_one_operation_per_layer() -> None:
    network = quantized_network("edsr_x2")
    graph = lower(network)
    kinds = [type(operation).__name__ for operation in graph.operations]
    # head, two per block, body's end, two in the tail; an addition per block and the long one
    assert kinds.count("Convolution") == 8
    assert kinds.count("Add") == 3
    assert kinds.count("PixelShuffle") == 1
    assert len(kinds) == 12
    relu = [o.relu for o in graph.operations if isinstance(o, ops.Convolution)]
    assert relu.count(True) == 2
    assert graph.info == network.info
    assert graph.halo == network.halo == 8  # seven 3x3 at low resolution, one at twice that
    picture = graph.tensors[graph.input]
    assert (picture.channels, picture.grid.scale) == (3, 1.0)
    # 255 * mean colour 0.43 of DIV2K: the shift of the input has become a zero point
    assert picture.grid.zero_point == pytest.approx(255 * np.mean([0.4488, 0.4371, 0.4040]), abs=1.5)
    output = graph.tensors[graph.output]
    assert (output.channels, output.resolution, output.grid.scale, output.grid.zero_point) == (3, 2, 1.0, 0)


@pytest.mark.parametrize("key", CONFIGS)
@pytest.mark.parametrize("bits", [8, 2])
def test_a_graph_is_whole_and_typed(key: str, bits: int) -> None:
    network = quantized_network(key, bits, placement="full")
    graph = lower(network)
    made = {graph.input}
    for operation in graph.operations:
        assert set(ops.sources(operation)) <= made, "an operation reads what is not made yet"
        assert operation.output not in made
        made.add(operation.output)
        if isinstance(operation, ops.Convolution):
            assert operation.weight.dtype == np.int8
            assert operation.bias.dtype == np.int32
            assert operation.weight_scale.dtype == np.float32
            assert operation.weight.min() >= -127
            if bits == 2:
                assert set(np.unique(operation.weight)) <= {-127, 0, 127}
    assert made == set(graph.tensors)
    assert graph.output in made
    assert graph.provenance["network"] == network.info.name
    assert graph.provenance["placement"] == str(network.placement)


def test_only_the_attention_is_left_in_float() -> None:
    for key in SIX:
        graph = lower(quantized_network(key))
        expected = ["quantizers_imdb1_cca", "quantizers_imdb2_cca"] if key == "imdn_x2" else []
        assert graph.left_in_float() == expected
        attention = [o for o in graph.operations if isinstance(o, ops.FloatProgram)]
        assert len(attention) == len(expected)


def test_lowering_twice_gives_the_same_graph() -> None:
    network = quantized_network("imdn_x2")
    one, two = lower(network), lower(network)
    assert one.tensors == two.tensors
    assert one.provenance == two.provenance
    assert [(type(o), o.output, ops.sources(o)) for o in one.operations] == [
        (type(o), o.output, ops.sources(o)) for o in two.operations
    ]


def test_lookups() -> None:
    graph: IntegerGraph = lower(quantized_network("edsr_x2"))
    assert graph.producer(graph.input) is None
    last = graph.producer(graph.output)
    assert last is graph.operations[-1]
    assert graph.readers(graph.output) == []
    head = graph.readers(graph.input)
    assert len(head) == 1
    assert graph.producer(head[0].output) is head[0]


@pytest.mark.parametrize("exact", [False, True], ids=["any", "exact"])
@pytest.mark.parametrize("bits", [8, 2])
def test_white_stays_white_and_black_black(bits: int, exact: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ABPN(ABPNConfig(scale=3, layers=3, width=4)).eval()
    last = network.body[-1]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
    quantized = calibrated(network, QuantizationConfig(weight_bits=bits, activation_bits=bits, exact=exact))
    graph = lower(quantized)
    for picture in (np.full((4, 5, 3), 255, np.uint8), np.zeros((4, 5, 3), np.uint8), noise(4, 5)):
        assert np.array_equal(reference.run(graph, picture), picture.repeat(3, 0).repeat(3, 1))


def test_a_network_without_weights_gives_its_mean_colour() -> None:
    network = build(EDSRConfig(scale=2, blocks=1, width=4), "edsr")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
    graph = lower(calibrated(network, QuantizationConfig()))
    found = reference.run(graph, noise(3, 3))
    assert (found == np.rint(255 * np.array([0.4488, 0.4371, 0.4040]))).all()
