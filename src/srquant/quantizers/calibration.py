"""Post-training quantisation of a network from calibration crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from srquant.config import QuantizationConfig
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.folding import fold
from srquant.quantizers.network import QuantizedNetwork

_JUDGES = 24
"""Crops that channels are equalised on, and that decide whether it helped."""


def quantize_network(
    network: SRNetwork, quantization: QuantizationConfig, crops: Sequence[Tensor], progress: Progress
) -> QuantizedNetwork:
    """Choose all grids of a network; with `equalize`, with and without equalised channels, and keep the better.

    The better one is nearer to the float network on some of the crops, by mean squared error.

    Args:
        network: the float network; it is not changed.
        quantization: how to quantise it.
        crops: uint8 [1, C, H, W] each; they stay in memory, their float32 form one at a time.
        progress: told of every crop.

    Raises:
        UserError: a layer cannot be quantised, or an activation is not finite.
    """
    plain = _calibrated(QuantizedNetwork(network, quantization), crops, progress)
    if not quantization.equalize:
        return plain
    judges = [crop.float() for crop in crops[:: -(-len(crops) // _JUDGES)]]
    equalized = _calibrated(QuantizedNetwork(network, quantization, equalized_on=judges), crops, progress)
    reference = fold(network)
    with torch.inference_mode():
        wanted = [reference(crop).clamp(0, 255) for crop in judges]
        errors = [
            sum(float((one(crop) - y).square().mean()) for crop, y in zip(judges, wanted, strict=True))
            for one in (plain, equalized)
        ]
    equalized.equalized = True
    return equalized if errors[1] < errors[0] else plain


def _calibrated(network: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress) -> QuantizedNetwork:
    def told() -> Iterator[Tensor]:
        for crop in crops:
            yield crop.float()
            progress.advance()

    passes = 1 if network.quantization.ranges == "minmax" else 2
    progress.start("calibrating", passes * len(crops))
    try:
        network.calibrate(told)
    finally:
        progress.finish()
    return network.eval()
