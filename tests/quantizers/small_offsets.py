"""Small trained networks whose tensors have offsets wherever they can."""

from __future__ import annotations

import torch
from small_trained import trained_network

from srquant.methods.offsets import OffsetBounds, OffsetConfig
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.offsets import can_scale, can_shift
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
    network.replace_quantizers(lambda _, old: Offset(old, config) if old.low_bit else BoundsQuantizer(old.bits))
    network.load_state_dict(state, strict=False)
    structure, random = Structure(network.graph), torch.Generator().manual_seed(len(key) + bits)
    for name, quantizer in network.activation_quantizers().items():
        if not isinstance(quantizer, Offset):
            continue
        quantizer.act(shifts=shifts and can_shift(structure, name), scales=scales and can_scale(structure, name))
        width = float((quantizer.upper - quantizer.lower).detach())
        with torch.no_grad():
            quantizer.shift.copy_((torch.rand(quantizer.channels, generator=random) - 0.6) * 0.6 * width)
            quantizer.log_factors.copy_((torch.rand(quantizer.channels, generator=random) - 0.5) * 1.2)
    return network.eval()
