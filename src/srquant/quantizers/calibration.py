"""Post-training quantisation of a network from calibration crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from srquant.config import QuantizationConfig
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.folding import fold, module_of
from srquant.quantizers.grid import IMAGE_GRID
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.ranges import Range
from srquant.quantizers.stepwise import StepwiseRun
from srquant.quantizers.weight_rounding import Sample, cut_off, round_weights

_JUDGES = 24
"""Crops that channels are equalised on, and that decide whether it helped."""

_SIDE = 192
"""Of these crops, at most: gradients through the whole network need much memory."""

_ROUNDED_SIDE = 64
"""The same of the crops that weights are rounded on: the features of all of them are in memory together."""

_BLACK, _WHITE = 0, 255
_GREYS = range(_BLACK + 17, _WHITE, 17)
_END_SHARE, _GREY_SHARE = 0.05, 0.002
"""How much black, white and each of the greys count where weights are rounded, all crops together counting 1."""

_FLAT_CORE = 2
"""Side of what sees no border in a flat picture, unless the network looks farther than `_LARGEST_HALO`."""

_LARGEST_HALO = 24
_FLAT_SIDE = 48
"""Side of a flat picture where it does; its middle third is looked at."""


def quantize_network(
    network: SRNetwork, quantization: QuantizationConfig, crops: Sequence[Tensor], progress: Progress
) -> QuantizedNetwork:
    """Choose all grids and codes of a network.

    Ranges are widened so that black and white pass, see `hold_flat_pictures`, but for an output range of its own.
    With `equalize`, this is done with and without equalised channels, and what comes nearer to the float network on
    some of the crops is kept, by mean squared error.

    Args:
        network: the float network; it is not changed.
        quantization: how to quantise it.
        crops: uint8 [1, C, H, W] each; they stay in memory, their float32 form one at a time while ranges are taken.
            Rounding the weights holds a few layers' features of up to 24 crops of 64x64 (1 GB for 64 channels at x4).
        progress: told of every crop while ranges are taken, then of every convolution.

    Raises:
        UserError: a layer cannot be quantised, or an activation is not finite.
    """
    reference = fold(network.collapsed())
    plain = QuantizedNetwork(network, quantization, join_sum=True)
    _calibrate(plain, reference, crops, progress)
    if not quantization.equalize:
        return plain
    judges = [crop[..., :_SIDE, :_SIDE] for crop in _judges(crops)]
    ends = [_flat(plain, level) for level in (_BLACK, _WHITE)]
    equalized = QuantizedNetwork(network, quantization, equalized_on=[*judges, *ends], join_sum=True)
    _calibrate(equalized, reference, crops, progress)
    equalized.equalized = True
    return min((plain, equalized), key=lambda candidate: _distance(reference, candidate, judges))


def compensate(network: QuantizedNetwork, crops: Sequence[Tensor], progress: Progress) -> None:
    """Round the weights of a calibrated network on crops, uint8 [1, C, H, W] each, where its settings want that.

    Flat greys from black to white are looked at as well: a photograph hides an error that all its pixels share.
    """
    if network.quantization.weight_rounding != "compensated":
        return
    chosen = [crop[..., :_ROUNDED_SIDE, :_ROUNDED_SIDE] for crop in _judges(crops)]
    samples = [Sample(crop.float(), 1 / len(chosen)) for crop in chosen]
    shares = {_BLACK: _END_SHARE, _WHITE: _END_SHARE, **dict.fromkeys(_GREYS, _GREY_SHARE)}
    samples += [Sample(_flat(network, level), share, _margin(network)) for level, share in shares.items()]
    progress.start("rounding weights", len(network.convolutions()))
    try:
        round_weights(network.graph, samples, progress.advance)
    finally:
        progress.finish()


def hold_flat_pictures(network: QuantizedNetwork, reference: nn.Module, crops: Sequence[Tensor]) -> None:
    """Widen the ranges of a calibrated network until black and white pass through it.

    Photographs rarely show either, and networks for luma answer with features far beyond those of any photograph:
    cut off, they turn black into grey. The features at the borders of black and white pictures are held as well where
    that brings crops and flat pictures nearer to the float network. Grids below 8 bits stay: they have no codes to
    spare.

    Args:
        network: calibrated, its float weights still there.
        reference: the float network in pixel units, unclipped.
        crops: uint8 [1, C, H, W] each.
    """
    calibrated, ends = dict(network.ranges), [_flat(network, level) for level in (_BLACK, _WHITE)]
    pictures = [*(crop[..., :_ROUNDED_SIDE, :_ROUNDED_SIDE] for crop in _judges(crops)), *ends]
    found: list[tuple[float, dict[str, Range]]] = []
    for margin in (_margin(network), 0.0):
        ranges = _widened(network, calibrated, ends, margin)
        network.use_ranges(ranges)
        found.append((_distance(reference, network, pictures), ranges))
    network.use_ranges(min(found, key=lambda one: one[0])[1])
    network.widened = frozenset(name for name, ends in network.ranges.items() if ends != calibrated[name])


def _widened(
    network: QuantizedNetwork, ranges: Mapping[str, Range], pictures: Sequence[Tensor], margin: float
) -> dict[str, Range]:
    """The ranges, those of 8 bits wide enough for the float values of pictures but for a margin."""
    wide, quantizers = dict(ranges), network.activation_quantizers()
    with torch.inference_mode():
        for picture in pictures:
            run = StepwiseRun(network.graph, picture, rounded=False)
            for node in network.graph.graph.nodes:
                if node.op == "output":
                    break
                run.step(node)
                name = str(node.target).removeprefix("quantizers.")
                is_free = name in wide and isinstance(module_of(network.graph, node), ActivationQuantizer)
                if is_free and quantizers[name].bits == IMAGE_GRID.bits:
                    top, left = (cut_off(length, margin) for length in run.env[node].shape[2:])
                    ends = run.env[node][..., top : -top or None, left : -left or None].aminmax()
                    wide[name] = min(wide[name][0], float(ends.min)), max(wide[name][1], float(ends.max))
    return wide


def _margin(network: QuantizedNetwork) -> float:
    """The share of a flat picture's sides, on each end, that is left out to see no border."""
    return network.halo / _flat(network, _BLACK).shape[-1] if _is_near(network.halo) else 1 / 3


def _flat(network: QuantizedNetwork, level: int) -> Tensor:
    """A picture of one grey level, float32 [1, C, H, W]."""
    multiple = network.info.size_multiple
    side = 2 * network.halo + _FLAT_CORE if _is_near(network.halo) else _FLAT_SIDE
    side = -(-side // multiple) * multiple
    return torch.full((1, network.info.channels, side, side), float(level))


def _is_near(halo: int | None) -> TypeGuard[int]:
    """Whether a flat picture of that halo and a middle is small enough to be worked with."""
    return halo is not None and halo <= _LARGEST_HALO


def _judges(crops: Sequence[Tensor]) -> Sequence[Tensor]:
    """Some of the crops, spread over all of them."""
    return crops[:: -(-len(crops) // _JUDGES)]


def _distance(reference: nn.Module, network: QuantizedNetwork, pictures: Sequence[Tensor]) -> float:
    """Mean squared error of a network's pictures against those of the float network, summed."""
    error = 0.0
    with torch.inference_mode():
        for picture in pictures:
            error += float((network(picture.float()) - reference(picture.float()).clamp(0, 255)).square().mean())
    return error


def _calibrate(network: QuantizedNetwork, reference: nn.Module, crops: Sequence[Tensor], progress: Progress) -> None:
    """Choose grids and codes of a network."""
    passes = 1 if network.quantization.ranges == "minmax" else 2
    with _told("calibrating", crops, passes, progress) as pictures:
        network.calibrate(pictures)
    network.eval()
    if network.quantization.output_range == "picture":  # else a comparison with converters, which see pictures alone
        hold_flat_pictures(network, reference, crops)
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
