"""Post-training quantisation of a network from calibration crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from srquant.config import QuantizationConfig
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.folding import fold
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.weight_rounding import round_weights

_JUDGES = 24
"""Crops that channels are equalised on, and that decide whether it helped."""

_SIDE = 192
"""Of these crops, at most: gradients through the whole network need much memory."""


def quantize_network(
    network: SRNetwork, quantization: QuantizationConfig, crops: Sequence[Tensor], progress: Progress
) -> QuantizedNetwork:
    """Choose all grids and codes of a network.

    With `equalize`, this is done with and without equalised channels, and what comes nearer to the float network on
    some of the crops is kept, by mean squared error.

    Args:
        network: the float network; it is not changed.
        quantization: how to quantise it.
        crops: uint8 [1, C, H, W] each; they stay in memory, their float32 form one at a time.
        progress: told of every crop.

    Raises:
        UserError: a layer cannot be quantised, or an activation is not finite.
    """
    plain = QuantizedNetwork(network, quantization, join_sum=True)
    _calibrate(plain, crops, progress)
    if not quantization.equalize:
        return plain
    judges = [crop[..., :_SIDE, :_SIDE] for crop in crops[:: -(-len(crops) // _JUDGES)]]
    equalized = QuantizedNetwork(network, quantization, equalized_on=judges, join_sum=True)
    _calibrate(equalized, crops, progress)
    equalized.equalized = True
    return _nearest(fold(network.collapsed()), (plain, equalized), judges)


def compensate(network: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress) -> None:
    """Round the weights of a calibrated network on crops, uint8 [1, C, H, W] each, where its settings want that."""
    if network.quantization.weight_rounding == "compensated":
        with _told("rounding weights", crops, 1, progress) as pictures:
            round_weights(network.convolutions().values(), network, pictures())


def _nearest(reference: nn.Module, candidates: Sequence[QuantizedNetwork], crops: Sequence[Tensor]) -> QuantizedNetwork:
    """The first of the candidates whose pictures are nearest to those of the float network."""
    errors = [0.0] * len(candidates)
    with torch.inference_mode():
        for crop in crops:
            wanted = reference(crop.float()).clamp(0, 255)
            for number, candidate in enumerate(candidates):
                errors[number] += float((candidate(crop.float()) - wanted).square().mean())
    return candidates[errors.index(min(errors))]


def _calibrate(network: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress) -> None:
    """Choose grids and codes of a network."""
    passes = 1 if network.quantization.ranges == "minmax" else 2
    with _told("calibrating", crops, passes, progress) as pictures:
        network.calibrate(pictures)
    network.eval()
    compensate(network, crops, progress)


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
