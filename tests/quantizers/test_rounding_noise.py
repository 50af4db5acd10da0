from __future__ import annotations

import pytest
import torch
from small_quantized import float_network, noise, tensor
from torch import Tensor, fx

from srquant.quantizers.channel_groups import ChannelGroups
from srquant.quantizers.equalization import equalizing_factors, rescale
from srquant.quantizers.folding import fold, module_of
from srquant.quantizers.grid import fake_quantize, grid_from_range
from srquant.quantizers.rounding_noise import RoundedTensor, Statistics, measure, quietest_factors

CROPS = [tensor(noise(24, 20, seed)) for seed in range(4)]


def output_error(graph: fx.GraphModule, name: str) -> float:
    """Squared error of the output, summed over the crops, when one tensor alone is rounded to 8 bits."""
    lows, highs = [], []

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.name == name:
                assert isinstance(result, Tensor)
                lows.append(float(result.min()))
                highs.append(float(result.max()))
            return result

    class Rounder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.name == name:
                assert isinstance(result, Tensor)
                return fake_quantize(result, grid_from_range(min(lows), max(highs), 8))
            return result

    with torch.inference_mode():
        wanted = [Watcher(graph).run(crop) for crop in CROPS]
        return sum(float((Rounder(graph).run(c) - y).square().sum()) for c, y in zip(CROPS, wanted, strict=True))


@pytest.mark.parametrize(("key", "name"), [("edsr_x2", "add_1"), ("srresnet_x4", "prelu_in"), ("xlsr_x3", "conv2")])
def test_predicted_noise_is_that_of_rounding(key: str, name: str) -> None:
    graph = fold(float_network(key))
    statistics = measure(graph, CROPS)
    node = next(node for node in statistics if node.name == name)
    found = statistics[node]
    channels = torch.arange(len(found.upper))
    predicted = RoundedTensor(channels, found).noise(torch.ones(len(channels))) / 12 / 2
    assert float(predicted) == pytest.approx(output_error(graph, name), rel=0.35)


def test_parameters_are_left_as_they_were() -> None:
    graph = fold(float_network("srresnet_x4"))
    trained = [parameter.requires_grad for parameter in graph.parameters()]
    measure(graph, CROPS[:1])
    assert [parameter.requires_grad for parameter in graph.parameters()] == trained
    assert all(parameter.grad is None for parameter in graph.parameters())


def tensor_of(spans: list[float], gradients: list[float]) -> RoundedTensor:
    upper = torch.tensor(spans)
    return RoundedTensor(
        torch.arange(len(spans)), Statistics(0 * upper, upper, upper.square(), torch.tensor(gradients))
    )


def test_channels_of_one_tensor_are_made_equal() -> None:
    factors = quietest_factors([tensor_of([1.0, 0.5, 2.0], [1.0, 1.0, 1.0])], 3, torch.tensor([True, False, False]), 16)
    assert factors[0] == 1
    assert torch.allclose(torch.tensor([1.0, 0.5, 2.0]) / factors, torch.ones(3), rtol=0.1)


def test_no_factor_exceeds_its_limit() -> None:
    factors = quietest_factors([tensor_of([1.0, 1e-4], [1.0, 1.0])], 2, torch.tensor([True, False]), 4)
    assert float(factors[1]) == pytest.approx(0.25)


def test_what_is_not_finite_scales_nothing() -> None:
    broken = [tensor_of([1.0, 0.1], [float("inf"), 1.0])]
    assert quietest_factors(broken, 2, torch.zeros(2, dtype=torch.bool), 4).tolist() == [1, 1]
    assert quietest_factors([], 2, torch.zeros(2, dtype=torch.bool), 4).tolist() == [1, 1]


def test_uneven_channels_lose_less_when_equalised() -> None:
    graph = fold(float_network("edsr_x2"))
    groups = ChannelGroups(graph)
    uneven = torch.logspace(-1.1, 1.1, len(groups.parents))
    uneven[0] = 1
    groups.divide(uneven)
    name = next(n.name for n in graph.graph.nodes if n.name == "add_1")
    before = output_error(graph, name)
    rescale(graph, equalizing_factors(graph, CROPS))
    assert output_error(graph, name) < 0.8 * before


def test_a_layer_that_looks_at_scaled_channels_undoes_the_scale() -> None:
    plain, scaled = fold(float_network("imdn_x2")), fold(float_network("imdn_x2"))
    factors = equalizing_factors(scaled, CROPS)
    rescale(scaled, factors)
    attention = next(n for n in plain.graph.nodes if str(n.target).endswith("cca"))
    reader = f"{attention.target}.conv_du.0.weight"
    assert not torch.equal(plain.state_dict()[reader], scaled.state_dict()[reader])
    assert module_of(scaled, next(n for n in scaled.graph.nodes if n.name == attention.name)) is not None
    with torch.inference_mode():
        assert (plain(CROPS[0]) - scaled(CROPS[0])).abs().max() < 0.02
