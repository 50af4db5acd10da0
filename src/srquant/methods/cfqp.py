"""CFQP: pictures for calibration chosen by the outputs of the float network, so that no clip is needed.

Kalay, Bilecen, Ayazoglu, "CFQP: clip-free quantisation pipeline", BMVC 2023, https://arxiv.org/abs/2308.11365.

The paper's, by its abstract: a network that overshoots the range of pictures is usually given a clipped activation
to survive calibration, which costs time; augmenting the calibration pictures by nothing but the outputs of the
float network makes the clip superfluous, without training again. Nothing beyond the abstract was available, so all
rules and constants below are ours, and no number here is to be ascribed to the paper:

- `range` (the default): the pictures stay as they are and the output's grid is given, 0..255, where saturation is
  the clip. The other two are for comparison, with a grid that is calibrated (`output_range = "calibrated"`): they
  keep its range small, but starve the layers in between of theirs.
- `select`: only pictures whose output, unclipped, stays within 0..255.
- `tame`: x <- clamp(g*x + b) with g and b from the output's extremes, until it stays within -0.5..255.5.
- the overshoot report: how far outputs overshoot, how ranges grow with the number of pictures, what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srquant.config import CalibrationConfig
from srquant.errors import UserError
from srquant.imaging.crops import Crop
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.folding import fold

PEAK = 255.0
FEWEST = 5
"""Fewer pictures than this are warned of."""

_ROUNDS = 8
_SLACK = 0.5
"""What rounding to whole grey levels hides."""

Function = Callable[[Tensor], Tensor]
"""A float network without its clip: float32 [1, C, H, W] of pixel values in and out."""


@dataclass(frozen=True)
class Overshoot:
    """The output of one picture.

    Attributes:
        lowest: its smallest value in grey levels, without the clip.
        highest: its largest value.
        below: share of the values below 0.
        above: share of the values above 255.
    """

    lowest: float
    highest: float
    below: float
    above: float

    @classmethod
    def of(cls, output: Tensor) -> Overshoot:
        """Of an unclipped output, float32 of any shape.

        Raises:
            UserError: it holds NaN or infinite values.
        """
        lowest, highest = map(float, torch.aminmax(output))
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise UserError(f"the network's output is not finite, {lowest}..{highest}: is the network damaged?")
        below, above = (float(outside.double().mean()) for outside in (output < 0, output > PEAK))
        return cls(lowest, highest, below, above)

    def stays_within(self, slack: float = 0.0) -> bool:
        """Whether no value leaves 0..255 by more than `slack`."""
        return self.lowest >= -slack and self.highest <= PEAK + slack


@dataclass(frozen=True)
class Tamed:
    """A picture that was darkened, or lifted, until its output stopped overshooting.

    Attributes:
        picture: uint8 [1, C, H, W].
        gain: what its values were multiplied by.
        offset: what was added to them then.
        output: what the network makes of it.
    """

    picture: Tensor
    gain: float
    offset: float
    output: Overshoot

    @property
    def within(self) -> bool:
        """Whether the output stopped overshooting, but for what rounding hides."""
        return self.output.stays_within(_SLACK)


def augment(pictures: Iterable[Tensor], config: CalibrationConfig) -> Iterator[Tensor]:
    """Pictures times gain plus offset, mixed with uniform noise; the same settings give the same pictures.

    Args:
        pictures: uint8 [1, C, H, W] each.
        config: gain, offset, noise, and the seed of the noise.
    """
    random = np.random.default_rng(config.seed)
    plain = (config.gain, config.offset, config.noise) == (1.0, 0.0, 0.0)
    for picture in pictures:
        if plain:
            yield picture
            continue
        values = picture.double() * config.gain + config.offset
        grain = torch.from_numpy(random.uniform(0, PEAK, tuple(picture.shape)))
        yield _rounded(values * (1 - config.noise) + grain * config.noise)


def tame(network: Function, picture: Tensor) -> Tamed:
    """x <- clamp(g*x + b), at most eight times, until the output stays within -0.5..255.5.

    Each round maps the output's range, where it is too wide, into 0..255, as if the network were linear with slope 1.

    Args:
        network: unclipped.
        picture: uint8 [1, C, H, W].

    Returns:
        The last round's picture; its output may still overshoot, see `Tamed.within`.

    Raises:
        UserError: an output is not finite.
    """
    gain, offset, tamed = 1.0, 0.0, picture
    output = Overshoot.of(network(picture.float()))
    for _ in range(_ROUNDS):
        if output.stays_within(_SLACK):
            break
        lowest, highest = min(output.lowest, 0.0), max(output.highest, PEAK)
        factor = PEAK / (highest - lowest)
        gain, offset = gain * factor, (offset - lowest) * factor
        tamed = _rounded(picture.double() * gain + offset)
        output = Overshoot.of(network(tamed.float()))
    return Tamed(tamed, gain, offset, output)


def representative(
    network: SRNetwork, crops: Sequence[Crop], config: CalibrationConfig, progress: Progress | None = None
) -> tuple[list[Tensor], list[dict[str, object]]]:
    """The pictures to calibrate on, by the augmentation and the mode of `config`.

    Args:
        network: float; run by the modes `select` and `tame` alone.
        crops: from `srquant.imaging.crops`.
        config: how they were chosen, and what is to become of them.
        progress: warned of tamed pictures that overshoot still.

    Returns:
        The pictures, uint8 [1, C, H, W] each, and what is to be recorded of each; `overshoots` is told of those alone
        that taming left so.

    Raises:
        UserError: mode `select` leaves no picture, or an output is not finite.
    """
    pictures = augment((torch.from_numpy(crop.pixels.copy()).permute(2, 0, 1)[None] for crop in crops), config)
    records = [crop.record for crop in crops]
    if config.mode == "range":
        return list(pictures), records
    unclipped = fold(network.collapsed())
    kept: list[Tensor] = []
    told: list[dict[str, object]] = []
    with torch.inference_mode():
        for picture, record in zip(pictures, records, strict=True):
            if config.mode == "tame":
                tamed = tame(unclipped, picture)
                kept.append(tamed.picture)
                how: dict[str, object] = {"gain": round(tamed.gain, 6), "offset": round(tamed.offset, 4)}
                told.append({**record, **how} if tamed.within else {**record, **how, "overshoots": True})
            elif Overshoot.of(unclipped(picture.float())).stays_within():
                kept.append(picture)
                told.append(record)
    if not kept:
        raise UserError(
            f"mode 'select' leaves none of {len(crops)} pictures: each one's output overshoots 0..255; "
            "mode 'range' needs no selection, 'tame' changes the pictures instead"
        )
    untamed = sum("overshoots" in record for record in told)
    if untamed and progress is not None:
        progress.warn(
            f"{untamed} of {len(told)} pictures still leave 0..255 after {_ROUNDS} rounds of taming; "
            "mode 'range' needs no taming"
        )
    return kept, told


def _rounded(values: Tensor) -> Tensor:
    return values.round().clamp(0, PEAK).to(torch.uint8)
