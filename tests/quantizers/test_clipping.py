from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_quantized import calibrated, float_network, noise, quantized_network, tensor
from torch import Tensor, nn
from torch.nn import functional

from srquant.config import QuantizationConfig
from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.integer import graph as ops
from srquant.integer import lower, reference
from srquant.networks import EDSRConfig, SRNetwork
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.clipping import clip_changes_nothing
from srquant.quantizers.folding import fold
from srquant.quantizers.grid import IMAGE_GRID, Grid
from srquant.quantizers.layers import KeptClip

PICTURE = tensor(noise(12, 10, seed=4))


class Tail(SRNetwork):
    """Two convolutions and an anything at the end; overshoots on noise."""

    name = "edsr"
    config_type = EDSRConfig
    peak_value: Tensor

    def __init__(
        self, end: Callable[[Tensor, Tail], Tensor], *, before_shuffle: bool = False, peak: float = 1.0
    ) -> None:
        super().__init__(EDSRConfig(scale=2, blocks=1, width=4), peak=peak)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.relu = nn.ReLU()
            self.last = nn.Conv2d(8, 12, 3, padding=1)
        self.last.weight.data *= 8
        self.shuffle = nn.PixelShuffle(2)
        self.six = nn.ReLU6()
        self.hard = nn.Hardtanh(0.0, 1.0)
        self.wide = nn.Hardtanh(-0.5, 1.5)
        self.narrow = nn.Hardtanh(0.1, 0.8)
        self.register_buffer("peak_value", torch.tensor(1.0))
        self.end = end
        self.before_shuffle = before_shuffle

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.relu(self.first(x)))
        return self.shuffle(self.end(x, self)) if self.before_shuffle else self.end(self.shuffle(x), self)


SAME_AS_PICTURES = {
    "torch.clamp": lambda x, _: torch.clamp(x, 0, 1),
    "torch.clamp by words": lambda x, _: torch.clamp(x, max=1.0, min=0.0),
    "torch.clip": lambda x, _: torch.clip(x, 0.0, 1.0),
    "method clamp": lambda x, _: x.clamp(0, 1),
    "method clip": lambda x, _: x.clip(min=0, max=1),
    "method clamp_": lambda x, _: x.clamp_(0, 1),
    "Hardtanh": lambda x, net: net.hard(x),
    "functional.hardtanh": lambda x, _: functional.hardtanh(x, 0.0, 1.0),
    "ReLU, then minimum": lambda x, net: torch.minimum(net.relu(x), torch.tensor(1.0)),
    "minimum of a buffer, then relu": lambda x, net: torch.relu(torch.minimum(net.peak_value, x)),
    "relu, then clamp_max": lambda x, _: torch.relu(x).clamp_max(1.0),
    "maximum, then clamp": lambda x, _: torch.maximum(x, torch.tensor(0.0)).clamp(max=1.0),
    "functional.relu6 of six times": lambda x, _: functional.relu6(x * 6.0) * (1 / 6),
    "ReLU6 of six times": lambda x, net: net.six(x * 6.0) * (1 / 6),
    "only below": lambda x, _: x.clamp(min=0),
    "only above": lambda x, _: x.clamp_max(1.0),
    "wider": lambda x, net: net.wide(x),
    "twice": lambda x, net: net.hard(net.wide(x)),
}


@pytest.mark.parametrize("before_shuffle", [False, True])
@pytest.mark.parametrize("how", SAME_AS_PICTURES)
def test_a_clip_that_saturation_replaces_is_found_and_dropped(how: str, before_shuffle: bool) -> None:
    network = Tail(SAME_AS_PICTURES[how], before_shuffle=before_shuffle).eval()
    with torch.no_grad():
        raw = Tail(lambda x, _: x).eval()(PICTURE / 255)
        expected = network(PICTURE / 255) * 255
    assert raw.min() < -0.2 < 1.2 < raw.max(), "the test needs a network that overshoots"
    folded = fold(network)
    assert not any(isinstance(module, nn.Hardtanh) for module in folded.modules())
    with_the_convolution = how == "only below" and before_shuffle
    assert sum(isinstance(module, nn.ReLU) for module in folded.modules()) == 1 + with_the_convolution
    with torch.no_grad():
        found = folded(PICTURE)
    assert (found.clamp(0, 255) - expected.clamp(0, 255)).abs().max() < 1e-3
    kept = sum(isinstance(module, KeptClip) for module in fold(network, keep_clip=True).modules())
    assert kept == 1 - with_the_convolution


@pytest.mark.parametrize("bounds", [(0.1, 1.0), (0.0, 0.9), (0.2, math.inf), (-math.inf, 0.8)])
def test_a_narrower_clip_is_kept(bounds: tuple[float, float]) -> None:
    (kept,) = [m for m in fold(Tail(lambda x, _: x.clamp(*bounds)).eval()).modules() if isinstance(m, KeptClip)]
    assert (kept.min_val, kept.max_val) == pytest.approx([255 * end for end in bounds])


def test_a_narrower_clip_clips_the_pixels() -> None:
    quantized = calibrated(Tail(lambda x, net: net.narrow(x)).eval(), QuantizationConfig(ranges="minmax"))
    pixels = open_engine(quantized, "reference").run(noise(12, 10, seed=4))
    step = max(q.deployed_grid().scale for q in quantized.activation_quantizers().values())
    assert abs(int(pixels.min()) - 0.1 * 255) <= step
    assert abs(int(pixels.max()) - 0.8 * 255) <= step


def test_clips_that_are_none_at_the_output_stay_layers() -> None:
    folded = fold(Tail(lambda x, net: net.hard(x) + x, peak=255.0).eval())
    assert any(isinstance(module, nn.Hardtanh) for module in folded.modules())
    assert not any(isinstance(module, KeptClip) for module in folded.modules())
    assert not any(isinstance(module, KeptClip) for module in fold(float_network("edsr_x2"), keep_clip=True).modules())


def test_what_only_looks_like_a_clip_is_left_alone() -> None:
    folded = fold(Tail(lambda x, net: torch.minimum(x, net.relu(x)), peak=255.0).eval())
    assert [node.name for node in folded.graph.nodes if node.target is torch.minimum]


def test_clips_that_leave_one_value_are_refused() -> None:
    with pytest.raises(UserError, match=r"the clips 'clamp' and 'clamp_1' leave one value of all: 2"):
        fold(Tail(lambda x, _: x.clamp(1.5, 2.0).clamp(2.0, 3.0)).eval())


@pytest.mark.parametrize(
    ("bounds", "same"),
    [
        ((0.0, 255.0), True),
        ((-3.0, math.inf), True),
        ((-math.inf, 256.0), True),
        ((0.4999, 254.5001), True),  # what lies between rounds to 0 and to 255 all the same
        ((0.5001, 255.0), False),
        ((1.0, 255.0), False),
        ((0.0, 254.4), False),
        ((-math.inf, 200.0), False),
        ((20.0, math.inf), False),
    ],
)
def test_a_clip_changes_nothing_where_rounding_saturates(bounds: tuple[float, float], same: bool) -> None:
    assert clip_changes_nothing(*bounds) is same
    values = torch.linspace(-20, 280, 300_001)
    codes = [torch.round(v).clamp(0, 255) for v in (values, values.clamp(*bounds))]
    assert torch.equal(*codes) is same


def test_a_clip_inside_a_grid_changes_codes_whatever_the_grid() -> None:
    grid = Grid(scale=0.37, zero_point=31, maximum_code=255)
    assert clip_changes_nothing(grid.lower, grid.upper, grid)
    assert not clip_changes_nothing(grid.lower + grid.scale, grid.upper, grid)
    assert not clip_changes_nothing(grid.lower, grid.upper - grid.scale, grid)


def test_every_accumulator_gives_the_pixel_that_the_clip_gives() -> None:
    """All sums of the last convolution from far below 0 to far above 255, channel by channel."""
    graph = lower(quantized_network("xlsr_x3"))
    last = [op for op in graph.operations if isinstance(op, ops.Convolution)][-1]
    assert graph.tensors[last.output].grid == IMAGE_GRID
    multipliers = np.float32(graph.tensors[last.input].grid.scale) * last.weight_scale
    for multiplier in multipliers:
        ends = (int(end / multiplier) for end in (-40.0, 300.0))
        sums = np.arange(*ends, dtype=np.int64).astype(np.float32)
        real = sums * multiplier
        saturated = np.clip(np.rint(real), 0, 255)
        clipped = np.clip(np.rint(np.clip(real, np.float32(0), np.float32(255))), 0, 255)
        assert real[0] < -30 < 290 < real[-1]
        assert np.array_equal(saturated, clipped)


@pytest.mark.parametrize("key", ["abpn_x3", "xlsr_x3"])
def test_a_folded_clip_gives_the_pixels_of_the_clip_on_the_same_codes(key: str) -> None:
    network = copy.deepcopy(float_network(key))
    name, last = {"abpn_x3": ("add", "body.6"), "xlsr_x3": ("conv4", "conv4")}[key]
    network.get_submodule(last).weight.data *= 8  # pyright: ignore[reportCallIssue]
    quantized = calibrated(network, QuantizationConfig())
    assert not [op for op in lower(quantized).operations if isinstance(op, ops.Clip | ops.Requantize)]
    raw: list[Tensor] = []
    quantized.activation_quantizers()[name].register_forward_pre_hook(lambda _m, inputs: raw.append(inputs[0]))
    pixels = open_engine(quantized, "simulate").run(noise(16, 18, seed=1))
    assert raw[0].min() < 0 < 255 < raw[0].max(), "the test needs a network that overshoots"
    clipped = functional.pixel_shuffle(raw[0].clamp(0, 255).round(), 3)[0].permute(1, 2, 0)
    assert np.array_equal(pixels, clipped.numpy())


@pytest.mark.parametrize("key", ["abpn_x3", "xlsr_x3"])
def test_a_kept_clip_is_an_operation_on_a_grid_of_its_own(key: str) -> None:
    quantized = calibrated(float_network(key), QuantizationConfig(clip="keep"))
    graph = lower(quantized)
    (clip,) = [op for op in graph.operations if isinstance(op, ops.Clip)]
    grid = graph.tensors[clip.input].grid
    assert grid != IMAGE_GRID
    assert [round((code - grid.zero_point) * grid.scale) for code in (clip.lowest, clip.highest)] == pytest.approx(
        [max(0, grid.lower), min(255, grid.upper)], abs=grid.scale
    )
    assert any(isinstance(op, ops.Requantize) for op in graph.operations)
    _engines_agree(quantized)


@pytest.mark.parametrize("key", ["abpn_x3", "xlsr_x3", "edsr_x2"])
@pytest.mark.parametrize("clip", ["fold", "keep"])
def test_a_calibrated_output_is_brought_to_pixels_by_one_more_step(key: str, clip: str) -> None:
    config = QuantizationConfig(output_range="calibrated", clip=clip)  # pyright: ignore[reportArgumentType]
    quantized = calibrated(float_network(key), config)
    assert quantized.placement.activation_bits["output_pixels"] == 8
    graph = lower(quantized)
    assert isinstance(graph.operations[-1], ops.Requantize)
    assert graph.tensors[graph.output].grid == IMAGE_GRID
    assert graph.tensors[graph.operations[-1].input].grid != IMAGE_GRID
    _engines_agree(quantized)


def _engines_agree(quantized: QuantizedNetwork) -> None:
    picture = noise(16, 18, seed=7)
    wanted = reference.run(lower(quantized), picture).astype(int)
    assert np.array_equal(open_engine(quantized, "onnxruntime", threads=1).run(picture), wanted)
    for engine in ("torch", "openvino", "simulate"):
        assert np.abs(open_engine(quantized, engine, threads=1).run(picture) - wanted).max() <= 1


@pytest.mark.parametrize("changes", [{"clip": "keep"}, {"output_range": "calibrated"}])
def test_they_are_for_calibration_only(changes: dict[str, str]) -> None:
    (name, value) = next(iter(changes.items()))
    with pytest.raises(UserError, match=f"{name} = '{value}' is for calibration only"):
        QuantizedNetwork(float_network("abpn_x3"), QuantizationConfig.model_validate(changes), trainable=True)
