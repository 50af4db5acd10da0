"""Post-training quantisation of a network from calibration crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from srquant.config import QuantizationConfig
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.folding import fold
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.weight_rounding import round_weights

_JUDGES = 24
"""Crops that channels are equalised on, and that decide whether it helped."""


def quantize_network(
    network: SRNetwork, quantization: QuantizationConfig, crops: Sequence[Tensor], progress: Progress
) -> QuantizedNetwork:
    """Choose all grids and codes of a network.

    With `equalize`, the grids are chosen with and without equalised channels, and those are kept that come nearer to
    the float network on some of the crops, by mean squared error. Then the weights are rounded.

    Args:
        network: the float network; it is not changed.
        quantization: how to quantise it.
        crops: uint8 [1, C, H, W] each; they stay in memory, their float32 form one at a time.
        progress: told of every crop.

    Raises:
        UserError: a layer cannot be quantised, or an activation is not finite.
    """
    chosen = _calibrated(QuantizedNetwork(network, quantization, join_sum=True), crops, progress)
    if quantization.equalize:
        chosen = _nearer_of_two(network, chosen, crops, progress)
    compensate(chosen, crops, progress)
    return chosen


def compensate(network: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress) -> None:
    """Round the weights of a calibrated network on crops, uint8 [1, C, H, W] each, where its settings want that."""
    if network.quantization.weight_rounding == "compensated":
        with _told("rounding weights", crops, 1, progress) as pictures:
            round_weights(network.convolutions().values(), network, pictures())


def _nearer_of_two(
    network: SRNetwork, plain: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress
) -> QuantizedNetwork:
    """The calibrated network, or one with equalised channels."""
    judges = [crop.float() for crop in crops[:: -(-len(crops) // _JUDGES)]]
    equalized = QuantizedNetwork(network, plain.quantization, equalized_on=judges, join_sum=True)
    _calibrated(equalized, crops, progress)
    reference = fold(network.collapsed())
    with torch.inference_mode():
        wanted = [reference(crop).clamp(0, 255) for crop in judges]
        errors = [
            sum(float((one(crop) - y).square().mean()) for crop, y in zip(judges, wanted, strict=True))
            for one in (plain, equalized)
        ]
    equalized.equalized = True
    return equalized if errors[1] < errors[0] else plain


def _calibrated(network: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress) -> QuantizedNetwork:
    passes = 1 if network.quantization.ranges == "minmax" else 2
    with _told("calibrating", crops, passes, progress) as pictures:
        network.calibrate(pictures)
    return network.eval()


@contextmanager
def _told(
    task: str, crops: Sequence[Tensor], passes: int, progress: Progress
) -> Iterator[Callable[[], Iterator[Tensor]]]:
    """A function that yields the crops as float32, of which the progress is told."""

    def pictures() -> Iterator[Tensor]:
        for crop in crops:
            yield crop.float()
            progress.advance()

    progress.start(task, passes * len(crops))
    try:
        yield pictures
    finally:
        progress.finish()
