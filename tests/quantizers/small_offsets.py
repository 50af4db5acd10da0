"""Small trained networks whose tensors have offsets wherever they can."""

from __future__ import annotations

from dataclasses import replace

import torch
from small_quantized import float_network, noise, tensor
from small_trained import trained_network

from srquant.config import QuantizationConfig
from srquant.methods.odm import ODM
from srquant.methods.offsets import OffsetBounds, OffsetConfig, shiftable
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.offsets import ChannelQuantizer, can_scale
from srquant.quantizers.structure import Structure


class Offset(OffsetBounds):
    """Trained bounds with offsets."""

    def __init__(self, old: ActivationQuantizer, config: OffsetConfig) -> None:
        super().__init__(old.bits)
        self.prepare_offsets(old.channels, config)


def offset_network(
    key: str, bits: int = 2, *, shifts: bool = True, scales: bool = True, placement: str = "strict", **options: object
) -> QuantizedNetwork:
    """One of `small_quantized.CONFIGS`, trained a little, with random offsets that matter."""
    network = trained_network(key, bits, placement)
    state = network.state_dict()
    config = OffsetConfig.model_validate({"offsets": "both", **options})
    able = shiftable(network)
    network.replace_quantizers(lambda name, old: Offset(old, config) if name in able else BoundsQuantizer(old.bits))
    network.load_state_dict(state, strict=False)
    structure, random = Structure(network.graph), torch.Generator().manual_seed(len(key) + bits)
    for name, quantizer in network.activation_quantizers().items():
        if isinstance(quantizer, BoundsQuantizer) and quantizer.bits < 8:
            # The first bounds are values on the 8-bit grid: its codes would lie on ties. Training moves them away.
            with torch.no_grad():
                quantizer.lower.mul_(1.0137)
                quantizer.upper.mul_(1.0137)
        if not isinstance(quantizer, Offset):
            continue
        quantizer.act(shifts=shifts, scales=scales and can_scale(structure, name))
        spread = 1 + 0.6 * (2**quantizer.bits - 1)
        with torch.no_grad():
            quantizer.shift_steps.copy_((torch.rand(quantizer.channels, generator=random) - 0.6) * spread)
            quantizer.log_factors.copy_((torch.rand(quantizer.channels, generator=random) - 0.5) * 1.2)
    return network.eval()


def odm_network(key: str, bits: int, offsets: str, steps: int = 4) -> QuantizedNetwork:
    """One of `small_quantized.CONFIGS`, trained by ODM for some steps; all tensors that can have offsets have them."""
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement="strict")
    network = QuantizedNetwork(float_network(key), config, trainable=True)
    options = {"offsets": offsets, "offset_ratio": 1.0, "offset_start": "statistics", "calibration_batches": 2}
    objective, scale = ODM.from_options(network, None, options, 1e-4), network.info.scale
    optimizer = torch.optim.Adam(objective.parameter_groups())
    for epoch in (1, 2):
        objective.start_epoch(epoch)
        for step in range(2 if epoch == 1 else steps):
            low, high = tensor(noise(12, 12, seed=step)), tensor(noise(12 * scale, 12 * scale, seed=10 + step))
            learns = objective.learns(epoch)
            with torch.set_grad_enabled(learns):
                loss = torch.stack([*objective(low, high).values()]).sum()
            if learns:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


def with_exact_scales(network: QuantizedNetwork) -> QuantizedNetwork:
    """A deployed network, changed in place: scales are powers of two, zero points even, so that no engine differs."""
    for quantizer in network.activation_quantizers().values():
        if quantizer.fixed:
            continue
        grid = quantizer.deployed_grid()
        scale = float(_power_of_two(torch.tensor(grid.scale)))
        quantizer.grid = replace(grid, scale=scale, zero_point=grid.zero_point // 2 * 2)
        if isinstance(quantizer, ChannelQuantizer) and quantizer.factors is not None:
            quantizer.factors = _power_of_two(torch.from_numpy(quantizer.factors)).numpy()
    for layer in network.convolutions().values():
        codes = layer.codes()
        layer.restore(replace(codes, steps=_power_of_two(codes.steps)))
    return network


def _power_of_two(values: torch.Tensor) -> torch.Tensor:
    return torch.exp2(torch.round(torch.log2(values)))
