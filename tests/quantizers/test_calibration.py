"""Post-training quantisation holds black and white, also where the calibration pictures show neither."""

from __future__ import annotations

import pytest
import torch
from small_quantized import float_network, noise, tensor
from torch import Tensor

from srquant.config import QuantizationConfig
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.calibration import hold_flat_pictures, quantize_network
from srquant.quantizers.folding import fold
from srquant.quantizers.layers import ActivationQuantizer

GREYISH = [tensor(noise(24, 20, seed)) / 8 + 110 for seed in range(4)]
"""Pictures that show nothing near black and white."""


def dull(network: QuantizedNetwork) -> QuantizedNetwork:
    network.calibrate(lambda: GREYISH)
    return network


@pytest.mark.parametrize("key", ["edsr_x2", "srresnet_x4", "xlsr_x3", "plainusr_x3", "imdn_x2"])
def test_ranges_are_widened_until_black_and_white_pass(key: str) -> None:
    network, wider = (dull(QuantizedNetwork(float_network(key), QuantizationConfig())) for _ in range(2))
    hold_flat_pictures(wider, fold(float_network(key)), GREYISH)
    grown = [name for name, (lower, upper) in network.ranges.items() if wider.ranges[name] != (lower, upper)]
    assert grown
    assert (wider.widened, network.widened) == (frozenset(grown), frozenset())
    assert all(wider.ranges[n][0] <= lo and wider.ranges[n][1] >= hi for n, (lo, hi) in network.ranges.items())
    cut: dict[str, float] = {}

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, ActivationQuantizer)
        grid, (values,) = module.deployed_grid(), inputs
        top, left = ((length - 1) // 2 for length in values.shape[2:])
        values = values[..., top : -top or None, left : -left or None]
        beyond = torch.maximum(values.max() - grid.upper, grid.lower - values.min()) / grid.scale
        cut[names[module]] = max(cut.get(names[module], 0.0), float(beyond))

    names = {module: name for name, module in wider.activation_quantizers().items() if not module.fixed}
    for module in names:
        module.register_forward_pre_hook(note)
    with torch.inference_mode():
        for level in (0, 255):
            wider(torch.full((1, 3, 48, 48), float(level)))
    assert max(cut.values()) < 4  # steps: what rounding before it adds


def test_ranges_below_8_bits_stay() -> None:
    network = dull(QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig(activation_bits=4)))
    low = {name for name, quantizer in network.activation_quantizers().items() if quantizer.bits < 8}
    before = dict(network.ranges)
    hold_flat_pictures(network, fold(float_network("edsr_x2")), GREYISH)
    assert low
    assert all(network.ranges[name] == before[name] for name in low)


@pytest.mark.parametrize("key", ["plainusr_ultra_x2", "span_x2"])
def test_flat_pictures_come_out_as_in_float_where_the_calibration_saw_none(key: str) -> None:
    network, crops = float_network(key), [crop.round().to(torch.uint8) for crop in GREYISH]
    wanted, found = fold(network), quantize_network(network, QuantizationConfig(), crops, Silent())
    cut = dull(QuantizedNetwork(network, QuantizationConfig()))
    errors = dict.fromkeys((found, cut), 0.0)
    with torch.inference_mode():
        for level in (0, 85, 170, 255):
            picture = torch.full((1, 3, 40, 40), float(level))
            for one in errors:
                error = (one(picture) - wanted(picture).clamp(0, 255)).abs()
                errors[one] = max(errors[one], float(error[..., 30:-30, 30:-30].max()))
    assert errors[found] <= 1.5
    assert errors[cut] > 10 * errors[found]
