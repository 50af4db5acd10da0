from __future__ import annotations

import pytest
import torch
from small_offsets import offset_network
from small_quantized import CONFIGS, float_network

from srquant.config import QuantizationConfig
from srquant.evaluation.costs import bit_operations, largest_levels, output_size, storage_bytes
from srquant.methods import METHODS
from srquant.networks.cost import convolution_macs, macs, parameters
from srquant.networks.layers import FloatLayer
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.calibration import quantize_network
from srquant.quantizers.deployment import deploy


def calibrated(key: str, **how: object) -> QuantizedNetwork:
    network = float_network(key)
    random = torch.Generator().manual_seed(1)
    crops = [torch.randint(0, 256, (1, 3, 24, 24), generator=random, dtype=torch.uint8) for _ in range(3)]
    return quantize_network(network, QuantizationConfig.model_validate(how), crops, Silent())


def simulated(method: str, placement: str) -> QuantizedNetwork:
    network = float_network("edsr_x2")
    how = QuantizationConfig(weight_bits=2, activation_bits=2, placement=placement, rest="float")
    objective = METHODS[method].from_options(QuantizedNetwork(network, how, trainable=True), network, {}, 1e-4)
    random = torch.Generator().manual_seed(1)
    batch = [torch.randint(0, 256, (2, 3, side, side), generator=random).float() for side in (12, 24)]
    for epoch in (1, 2):
        objective.start_epoch(epoch)
        objective(*batch)
    return objective.network.eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_output_is_720_lines_or_hardly_more(scale: int) -> None:
    height, width = output_size(scale)
    assert height % scale == width % scale == 0
    assert 0 <= height - 720 < scale
    assert 0 <= width - 1280 < scale


def test_a_float_network_counts_32_bits_twice() -> None:
    network = float_network("edsr_x2")
    assert bit_operations(network, 10, 12) == 1024 * macs(network, 10, 12)


@pytest.mark.parametrize("key", CONFIGS)
def test_at_8_bit_every_quantised_multiplication_counts_64(key: str) -> None:
    network = float_network(key)
    quantized = QuantizedNetwork(network, QuantizationConfig())
    counts = convolution_macs(network, 16, 16, network.info.channels)
    in_float = {name for name in counts if name not in quantized.convolutions()}
    pooled = tuple(name for name, layer in network.named_modules() if isinstance(layer, FloatLayer))
    assert all(name.startswith(pooled) for name in in_float), "nothing else is left in float"
    expected = sum(count * (1024 if name in in_float else 64) for name, count in counts.items())
    assert bit_operations(quantized, 16, 16) == expected


def test_low_bits_count_where_the_placement_puts_them() -> None:
    network = float_network("edsr_x2")
    how = QuantizationConfig(weight_bits=2, activation_bits=4, placement="daq")
    low = sum(n for name, n in convolution_macs(network, 8, 8).items() if ".body." in name)
    assert low > 0
    rest = macs(network, 8, 8) - low
    assert bit_operations(QuantizedNetwork(network, how), 8, 8) == low * 2 * 4 + rest * 64


def test_an_input_that_is_not_rounded_counts_32_bits() -> None:
    network = float_network("edsr_x2")
    how = QuantizationConfig(weight_bits=2, activation_bits=2, placement="ddtb-official", rest="float")
    counts = convolution_macs(network, 8, 8)
    raw, rounded = (
        sum(n for name, n in counts.items() if name.endswith(end) and ".body." in name) for end in ("0", "2")
    )
    others = macs(network, 8, 8) - raw - rounded
    expected = raw * 2 * 32 + rounded * 2 * 2 + others * 1024
    assert bit_operations(QuantizedNetwork(network, how, trainable=True), 8, 8) == expected


def test_a_sum_left_to_a_convolution_counts_twice() -> None:
    network = float_network("imdn_x2")
    joined = QuantizedNetwork(network, QuantizationConfig(), join_sum=True)
    plain = QuantizedNetwork(network, QuantizationConfig())
    widened = [n for n, c in joined.convolutions().items() if c.weight.shape != plain.convolutions()[n].weight.shape]
    assert len(widened) == joined.joined_sum
    more = sum(convolution_macs(network, 16, 16)[name] for name in widened)
    assert bit_operations(joined, 16, 16) - bit_operations(plain, 16, 16) == 64 * more


def test_levels_of_a_deployed_network_keep_to_its_bits() -> None:
    weights, activations = largest_levels(calibrated("edsr_x2", weight_bits=3, activation_bits=2, placement="daq"))
    assert 2 <= weights <= 8
    assert 2 <= activations <= 4


def test_levels_of_tensors_with_offsets_are_those_of_a_channel() -> None:
    deployed = deploy(offset_network("abpn_x3", scales=False))
    assert deployed.offsets()
    whole: list[int] = []
    quantizers = deployed.activation_quantizers()
    for name in deployed.offsets():
        quantizers[name].register_forward_hook(lambda _m, _i, output: whole.append(len(torch.unique(output))))
    _, activations = largest_levels(deployed)
    assert 2 <= activations <= 4 < max(whole)


def test_levels_of_simulations_are_counted_channel_by_channel() -> None:
    assert largest_levels(simulated("pams", "ddtb-official")) == (3, 3)
    weights, activations = largest_levels(simulated("daq", "daq"))
    assert weights == 4, "float32 sets values of one level apart, which is no further level"
    assert activations >= 4


def test_bytes_of_float_packed_and_simulated_weights() -> None:
    network = float_network("edsr_x2")
    assert storage_bytes(network) == 4 * parameters(network)
    packed = calibrated("edsr_x2", weight_bits=2, activation_bits=2, placement="daq")
    layers = packed.convolutions().values()
    assert storage_bytes(packed) == sum(c.weight.numel() * c.bits // 8 + 8 * c.out_channels for c in layers)
    low = [c for c in layers if c.bits == 2]
    saved = sum(4 * (c.weight.numel() + c.out_channels) - c.weight.numel() // 4 - 8 * c.out_channels for c in low)
    assert storage_bytes(simulated("pams", "ddtb-official")) == storage_bytes(network) - saved


def test_bytes_of_gates_are_counted() -> None:
    network = float_network("edsr_x2")
    how = QuantizationConfig(weight_bits=2, activation_bits=2, placement="ddtb")
    options = {"gate_start_epoch": 2, "dynamic_ratio": 1.0}
    random = torch.Generator().manual_seed(1)
    batch = [torch.randint(0, 256, (2, 3, side, side), generator=random).float() for side in (12, 24)]
    objective = METHODS["ddtb"].from_options(QuantizedNetwork(network, how, trainable=True), network, options, 1e-4)
    for epoch in (1, 2):
        objective.start_epoch(epoch)
        objective(*batch)
    deployed = deploy(objective.eval().network)
    gate = 32 * 8 + 32 + 32 + 2 * 32  # 8 channels to 32 features, their normalisation, and 2 factors
    assert storage_bytes(deployed) == deployed.storage_bytes() + 4 * gate * len(deployed.gates())
    assert len(deployed.gates()) > 1
