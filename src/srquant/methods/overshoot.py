"""The overshoot report of CFQP: what calibration pictures do to a network's output and to the range of every tensor.

See `srquant.methods.cfqp` for the paper and for what is ours: all of this. Pictures are seen one at a time; of each
only extremes are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.methods.cfqp import FEWEST, PEAK, Overshoot
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.structure import Structure

_COUNTS = (1, 2, 5)
_GROWTH = 0.05
"""A range that grew by more in the second half of the pictures is still growing."""
_DECISIVE = 0.2
"""A picture without which a range is narrower by more decides it."""
_DARK = 200
_LIGHT = 55
_NARROW = 1e-6


@dataclass(frozen=True)
class PictureReport:
    """One picture.

    Attributes:
        name: as it was given.
        darkest: smallest value that went in.
        brightest: largest value that went in.
        output: what came out, without the clip.
    """

    name: str
    darkest: float
    brightest: float
    output: Overshoot


@dataclass(frozen=True)
class TensorReport:
    """The range of one tensor, by extremes.

    Attributes:
        name: of the tensor.
        ranges: lower and upper end after so many pictures.
        growth: share of the last range that the second half of the pictures added to it.
        decided_by: the picture without which the range is narrower by the largest share.
        share: that share.
    """

    name: str
    ranges: Mapping[int, tuple[float, float]]
    growth: float
    decided_by: str
    share: float


@dataclass(frozen=True)
class OvershootReport:
    """Pictures, tensors and advice; the first tensor is the network's input, `output` names its output."""

    output: str
    pictures: tuple[PictureReport, ...]
    tensors: tuple[TensorReport, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class _Extremes:
    """The two lowest and the two highest pictures of one tensor, and its range after some counts."""

    def __init__(self) -> None:
        self.lows: list[tuple[float, int]] = []
        self.highs: list[tuple[float, int]] = []
        self.after: dict[int, tuple[float, float]] = {}

    def see(self, values: Tensor, number: int) -> None:
        low, high = map(float, torch.aminmax(values.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"the activation range {low}..{high} is not finite: is the network damaged?")
        self.lows = sorted([*self.lows, (low, number)])[:2]
        self.highs = sorted([*self.highs, (high, number)], reverse=True)[:2]

    def range(self, without: int | None = None) -> tuple[float, float]:
        """Lower and upper end, widened to hold zero, of all pictures or of all but one."""
        low, high = (next((v for v, n in ends if n != without), 0.0) for ends in (self.lows, self.highs))
        return min(low, 0.0), max(high, 0.0)

    def decided_by(self) -> tuple[int, float]:
        """The picture that is missed most, and the share of the range that goes with it."""
        width = max(_width(self.range()), _NARROW)
        shares = {n: 1 - _width(self.range(without=n)) / width for n in (self.lows[0][1], self.highs[0][1])}
        return max(shares.items(), key=lambda item: item[1])


def overshoot_report(
    network: SRNetwork, pictures: Sequence[str], crops: Iterable[Tensor], progress: Progress
) -> OvershootReport:
    """Run the float network without its clip over pictures.

    Args:
        network: not changed.
        pictures: their names.
        crops: uint8 [1, C, H, W], one for each name.
        progress: told of every picture.

    Raises:
        UserError: a layer cannot be quantised, so that its tensors have no place, or a tensor is not finite.
    """
    quantized = QuantizedNetwork(network, QuantizationConfig()).train()  # in training mode nothing is rounded
    (end,) = quantized.graph.graph.find_nodes(op="output")
    output = str(Structure(quantized.graph).origin(end.args[0]).target).removeprefix("quantizers.")
    seen = {name: _Extremes() for name in quantized.activation_quantizers()}
    reports: list[PictureReport] = []
    results: list[Tensor] = []

    def watch(name: str, quantizer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name].see(inputs[0], len(reports))
            if name == output:
                results.append(inputs[0])

        return quantizer.register_forward_pre_hook(note)

    for name, quantizer in quantized.activation_quantizers().items():
        watch(name, quantizer)
    checkpoints = _checkpoints(len(pictures))
    progress.start("measuring", len(pictures))
    try:
        with torch.inference_mode():
            for picture, crop in zip(pictures, crops, strict=True):
                quantized(crop.float())
                darkest, brightest = map(float, torch.aminmax(crop))
                reports.append(PictureReport(picture, darkest, brightest, Overshoot.of(results.pop())))
                if len(reports) in checkpoints:
                    for extremes in seen.values():
                        extremes.after[len(reports)] = extremes.range()
                progress.advance()
    finally:
        progress.finish()
    tensors = tuple(_tensor(name, extremes, pictures) for name, extremes in seen.items())
    return OvershootReport(output, tuple(reports), tensors, tuple(_advice(output, reports, tensors)))


def _checkpoints(count: int) -> set[int]:
    """1, 2, 5, 10, 20, ..., the half and the whole."""
    tens = [10**i for i in range(len(str(count)))]
    return {first * ten for ten in tens for first in _COUNTS if first * ten < count} | {-(-count // 2), count}


def _tensor(name: str, extremes: _Extremes, pictures: Sequence[str]) -> TensorReport:
    count = len(pictures)
    half, whole = (_width(extremes.after[number]) for number in (-(-count // 2), count))
    number, share = extremes.decided_by()
    return TensorReport(name, extremes.after, 1 - half / max(whole, _NARROW), pictures[number], share)


def _advice(output: str, pictures: Sequence[PictureReport], tensors: Sequence[TensorReport]) -> list[str]:
    """What to do, one line each, the gravest first."""
    said = []
    if len(pictures) < FEWEST:
        said.append(f"too few pictures: {len(pictures)}; take {FEWEST} to 20 different ones")
    brightest, darkest = max(p.brightest for p in pictures), min(p.darkest for p in pictures)
    if brightest < _DARK or darkest > _LIGHT:
        if brightest >= _DARK:
            told = f"light, none has a value below {darkest:g}"
        elif darkest <= _LIGHT:
            told = f"dark, none has a value above {brightest:g}"
        else:
            told = f"of one brightness, {darkest:g}..{brightest:g}"
        said.append(f"all pictures are {told}: layers inside get too small a range")
    inner = [tensor for tensor in tensors if tensor.name != output]
    if len(pictures) >= FEWEST:
        said += _unsteady(inner)
    said += _overshooting(next(tensor for tensor in tensors if tensor.name == output), pictures)
    return said or ["nothing to mend: enough pictures, steady ranges, no overshoot"]


def _unsteady(tensors: Sequence[TensorReport]) -> list[str]:
    said = []
    growing = sorted((t for t in tensors if t.growth > _GROWTH), key=lambda t: -t.growth)
    if growing:
        first = growing[0]
        said.append(
            f"the ranges of {len(growing)} of {len(tensors)} tensors still grow ({first.name}: "
            f"{100 * first.growth:.0f} % of it by the second half of the pictures): "
            "take more, or cut tails with --ranges percentile"
        )
    decided: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        if tensor.share > _DECISIVE:
            decided.setdefault(tensor.decided_by, []).append(tensor)
    for picture, those in sorted(decided.items(), key=lambda item: -len(item[1])):
        most = max(those, key=lambda t: t.share)
        said.append(
            f"'{picture}' alone decides the range of {len(those)} tensors ({100 * most.share:.0f} % of {most.name}): "
            "look at it, take more like it, or cut tails with --ranges percentile"
        )
    return said


def _overshooting(output: TensorReport, pictures: Sequence[PictureReport]) -> list[str]:
    above, below = (
        sum(outside(p.output) for p in pictures) / len(pictures)
        for outside in (lambda o: o.highest > PEAK, lambda o: o.lowest < 0)
    )
    lower, upper = output.ranges[len(pictures)]
    if not above + below:
        return []
    found = (
        f"{100 * above:.0f} % of the pictures overshoot above 255, {100 * below:.0f} % below 0, to "
        f"{lower:.1f}..{upper:.1f}"
    )
    step = round(_width((lower, upper)) / PEAK, 2)
    if step <= 1:
        return [found]
    return [
        f"{found}: calibrated by extremes, the output's step would be {step:.2f} grey levels; "
        "given as that of pictures (--output-range picture, the default) it is 1"
    ]


def _width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]
