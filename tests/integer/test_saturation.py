"""Clips between layers: taken over by the codes of the tensor before them, or an operation of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_quantized import calibrated, noise, tensor
from torch import nn

from srquant.config import QuantizationConfig
from srquant.engines import open_engine
from srquant.integer import graph as ops
from srquant.integer import lower, reference
from srquant.networks import EDSRConfig, SRNetwork
from srquant.networks.layers import CentredSigmoid
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import KeptClip
from srquant.quantizers.structure import Structure, saturates

SIZES = [(9, 8), (1, 1), (4, 6)]


class Layered(SRNetwork):
    """Two convolutions with layers between and behind them, alive enough to reach a clip at both ends."""

    name = "edsr"
    config_type = EDSRConfig

    def __init__(self, between: nn.Module, behind: nn.Module, *, adds: bool = False) -> None:
        super().__init__(EDSRConfig(scale=2, blocks=1, width=4))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 1)
            self.last = nn.Conv2d(8, 12, 3, padding=1)
        nn.init.uniform_(self.last.bias, 0.1, 0.9) if self.last.bias is not None else None
        with torch.no_grad():
            self.first.weight *= 6
            self.last.weight *= 2
        self.between = between
        self.behind = behind
        self.shuffle = nn.PixelShuffle(2)
        self.adds = adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x)
        features = self.between(self.second(features) + features) if self.adds else self.between(features)
        return self.behind(self.shuffle(self.last(features)))


def quantized(between: nn.Module, behind: nn.Module | None = None, **given: bool) -> QuantizedNetwork:
    adds = given.pop("adds", False)
    network = Layered(between, behind or nn.Identity(), adds=adds).eval()
    if behind is None:
        network.behind = nn.PixelShuffle(1)
    return calibrated(network, QuantizationConfig(**given))  # pyright: ignore[reportArgumentType]


def simulated(network: QuantizedNetwork, picture: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(tensor(picture))[0].permute(1, 2, 0).numpy().astype(np.uint8)


CLIPS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "0..1": lambda: nn.Hardtanh(0.0, 1.0),
    "-0.7..0.4": lambda: nn.Hardtanh(-0.7, 0.4),
    "0.1..0.8": lambda: nn.Hardtanh(0.1, 0.8),
}


@pytest.mark.parametrize("exact", [False, True], ids=["any", "exact"])
@pytest.mark.parametrize("adds", [False, True], ids=["conv", "add"])
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_behind_a_convolution_or_an_addition_is_in_the_codes(name: str, adds: bool, exact: bool) -> None:
    network = quantized(CLIPS[name](), adds=adds, exact=exact)
    graph = lower(network)
    made = next(o for o in graph.operations if "between" in o.output and not isinstance(o, ops.Clip))
    assert isinstance(made, ops.Add if adds else ops.Convolution)
    assert not any(isinstance(o, ops.Requantize) for o in graph.operations)
    for size in SIZES:
        found, wanted = reference.run(graph, noise(*size, seed=4)), simulated(network, noise(*size, seed=4))
        difference = np.abs(found.astype(int) - wanted)
        assert difference.max() <= (0 if exact else 2)
        assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("adds", [False, True], ids=["conv", "add"])
@pytest.mark.parametrize("name", ["relu", "relu6", "0..1"])
def test_within_its_range_a_clip_changes_no_code_and_costs_nothing(name: str, adds: bool) -> None:
    """The same quantised network with the layer and without it: the grid saturates where the clip does."""
    network = quantized(CLIPS[name](), adds=adds)
    assert not any(isinstance(o, ops.Clip) for o in lower(network).operations)
    pictures = [noise(12, 11, seed=s) for s in range(3)]
    wanted = [simulated(network, picture) for picture in pictures]
    structure = Structure(network.graph)
    (clip,) = [node for node in structure.graph.nodes if saturates(structure.module(node))]
    module = network.graph.get_submodule(str(clip.target))
    cut: list[float] = []
    module.register_forward_hook(lambda _m, i, o: cut.append(float((i[0] != o).float().mean())))
    simulated(network, pictures[0])
    assert cut[0] > 0.05, "the test needs a clip that does something"
    clip.replace_all_uses_with(clip.all_input_nodes[0])
    network.graph.graph.erase_node(clip)
    network.graph.recompile()
    for picture, expected in zip(pictures, wanted, strict=True):
        assert np.array_equal(simulated(network, picture), expected)


def test_a_clip_inside_the_grid_becomes_an_operation() -> None:
    """With power-of-two scales the grid reaches beyond the clip."""
    network = quantized(nn.Hardtanh(-0.7, 0.4), exact=True)
    graph = lower(network)
    (clip,) = [o for o in graph.operations if isinstance(o, ops.Clip)]
    grid = graph.tensors[clip.output].grid
    assert grid == graph.tensors[clip.input].grid
    assert [(code - grid.zero_point) * grid.scale for code in (clip.lowest, clip.highest)] == pytest.approx(
        [-0.7, 0.4], abs=grid.scale / 2
    )
    assert isinstance(graph.producer(clip.input), ops.Convolution)


def test_a_clip_of_a_tensor_that_others_read_is_a_requantisation() -> None:
    class Twice(Layered):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.first(x)
            return self.behind(self.shuffle(self.last(self.between(features) + features)))

    network = calibrated(Twice(nn.ReLU(), nn.PixelShuffle(1)).eval(), QuantizationConfig(exact=True))
    graph = lower(network)
    (again,) = [o for o in graph.operations if isinstance(o, ops.Requantize)]
    assert graph.tensors[again.output].grid.zero_point == 0
    picture = noise(9, 8, seed=4)
    assert np.array_equal(reference.run(graph, picture), simulated(network, picture))


@pytest.mark.parametrize("exact", [False, True], ids=["any", "exact"])
@pytest.mark.parametrize("bounds", [(0.0, 255.0), (20.0, 200.0), (0.0, float("inf"))])
def test_a_kept_clip_is_computed_on_the_grid_before_it(bounds: tuple[float, float], exact: bool) -> None:
    network = quantized(nn.ReLU(), nn.Hardtanh(0.0, 1.0), exact=exact, clip="keep")  # pyright: ignore[reportArgumentType]
    clips = [m for m in network.graph.modules() if isinstance(m, KeptClip)]
    (clip,) = clips
    clip.min_val, clip.max_val = bounds
    graph = lower(network)
    *_, clipped, last = graph.operations
    assert isinstance(clipped, ops.Clip)
    assert isinstance(last, ops.Requantize)
    before, after = graph.tensors[clipped.input].grid, graph.tensors[clipped.output].grid
    assert before == after != Grid(1.0, 0, 255)
    lowest, highest = ((code - before.zero_point) * before.scale for code in (clipped.lowest, clipped.highest))
    assert lowest == pytest.approx(max(bounds[0], before.lower), abs=before.scale / 2)
    assert highest == pytest.approx(min(bounds[1], before.upper), abs=before.scale / 2)
    assert graph.tensors[graph.output].grid == Grid(1.0, 0, 255)
    for size in SIZES:
        picture = noise(*size, seed=4)
        wanted = reference.run(graph, picture)
        for engine in ("torch", "onnxruntime", "openvino", "simulate"):
            found = open_engine(network, engine, threads=1).run(picture)
            assert np.abs(found.astype(int) - wanted).max() <= (0 if exact or engine == "onnxruntime" else 2), engine


@pytest.mark.parametrize(
    "layer", [nn.Sigmoid(), CentredSigmoid(), nn.Tanh(), nn.SiLU()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("exact", [False, True], ids=["any", "exact"])
def test_a_function_between_convolutions_is_a_lookup_and_the_simulation_agrees(layer: nn.Module, exact: bool) -> None:
    network = quantized(layer, exact=exact)
    graph = lower(network)
    (lookup,) = [o for o in graph.operations if isinstance(o, ops.Lookup)]
    assert isinstance(graph.producer(lookup.input), ops.Convolution)
    assert graph.left_in_float() == []
    for size in SIZES:
        picture = noise(*size, seed=4)
        found, wanted = reference.run(graph, picture).astype(int), simulated(network, picture)
        assert np.abs(found - wanted).max() <= (0 if exact else 2)
