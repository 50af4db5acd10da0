"""Small networks as a method leaves them: trained bounds, weight quantisers, a few steps taken."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from small_quantized import float_network, noise, tensor

from srquant.config import QuantizationConfig
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.gating import GatedQuantizer, GateWeights, PictureGrid
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.weights import AsymmetricWeights, SymmetricWeights


def trained_network(key: str, bits: int = 2, placement: str = "strict", steps: int = 3) -> QuantizedNetwork:
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement=placement)
    network = QuantizedNetwork(float_network(key), config, trainable=True)

    def bounds(_name: str, old: ActivationQuantizer) -> BoundsQuantizer:
        return BoundsQuantizer(old.bits, percentile=99.0 if old.low_bit else 100.0)

    network.replace_quantizers(bounds)
    for layer in network.convolutions().values():
        low = layer.low_bit and layer.bits < 8
        layer.weight_quantizer = (
            AsymmetricWeights(layer.bits) if low else SymmetricWeights(layer.bits, per_channel=True)
        )
    network.method = "a test's"
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    for step in range(steps):
        loss = (network(tensor(noise(20, 22, step))) - 127).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def random_gate(channels: int, seed: int) -> GateWeights:
    """A gate whose factors differ from picture to picture."""
    random = np.random.default_rng(seed)

    def values(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (random.normal(size=shape) * scale).astype(np.float32)

    return GateWeights(values(16, channels), np.ones(16, np.float32), values(16, scale=0.1), values(2, 16, scale=0.2))


class Gated(BoundsQuantizer):
    """Trained bounds that are deployed with a gate."""

    def deployed(self) -> GatedQuantizer:
        gate = random_gate(self.channels, seed=self.channels)
        return GatedQuantizer(PictureGrid(self.lower.item(), self.upper.item(), self.bits, gate))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values) if self.training else self.deployed()(values)


def gated_network(key: str, bits: int = 2, placement: str = "ddtb") -> QuantizedNetwork:
    """Every low-bit tensor has a gate."""
    network = trained_network(key, bits, placement)
    state = network.state_dict()

    def gate(_name: str, old: ActivationQuantizer) -> ActivationQuantizer:
        return Gated(old.bits) if old.low_bit else BoundsQuantizer(old.bits)

    network.replace_quantizers(gate)
    network.load_state_dict(state)
    return network.eval()
