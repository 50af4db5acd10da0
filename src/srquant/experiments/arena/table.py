"""How an arena came out so far: one row for each entry and bit width, the seeds taken together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from srquant.experiments.arena.log import validation_curve
from srquant.experiments.arena.plan import Contender
from srquant.experiments.arena.ring import Result, Ring

SETS = ("psnr", "ssim")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the seeds; the latter is None for one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of some values; None of none."""
        if not values:
            return None
        spreads = len(values) > 1 and all(map(math.isfinite, values))
        return cls(fmean(values), stdev(values) if spreads else None)


@dataclass(frozen=True)
class Row:
    """One entry at one bit width.

    Attributes:
        entry: its name.
        method: what it is; "post-training" for calibration alone, "float" for the float network.
        bits: of weights and activations; 32 for the float network.
        planned: how many seeds there are to be.
        seeds: those that are finished; the float network has none and counts as one.
        psnr: by benchmark set, in dB.
        ssim: by benchmark set.
        validation: PSNR on the validation pictures, in dB.
        results: of the seeds.
        engines: what the scores were computed by; "simulate" is no integer engine.
        budget: steps, batch and patch; None where nothing is trained.
        kernel: how quantised layers computed in training; None where nothing is trained.
        protocols: of the scores.
        unequal: what differs from the common terms.
    """

    entry: str
    method: str
    bits: int
    planned: int
    seeds: tuple[int, ...]
    psnr: Mapping[str, Spread]
    ssim: Mapping[str, Spread]
    validation: Spread | None
    results: tuple[Result, ...]
    engines: tuple[str, ...]
    budget: tuple[int, int, int] | None
    kernel: str | None
    protocols: tuple[str, ...]
    unequal: tuple[str, ...]

    def median(self, name: str) -> float | None:
        """The median over the seeds of a measured quantity of `Result`; None where devices differ."""
        if len({device for result in self.results for device in result.devices}) > 1:
            return None
        values = [value for value in (getattr(result, name) for result in self.results) if value is not None]
        return median(values) if values else None

    def largest(self, name: str) -> int | None:
        """The largest of a counted quantity of `Result`."""
        return max((value for value in (getattr(r, name) for r in self.results) if value is not None), default=None)

    def told_once(self, name: str) -> tuple[Any, ...]:
        """The different values of a quantity of `Result`."""
        return tuple(dict.fromkeys(getattr(result, name) for result in self.results))

    def devices(self) -> tuple[str, ...]:
        """What trained the seeds; "a, then b" for a run on two devices, "not recorded" of an earlier srquant."""
        if self.kernel is None:
            return ()
        return tuple(", then ".join(told) or "not recorded" for told in self.told_once("devices"))


@dataclass(frozen=True)
class Point:
    """Validation PSNR of an entry at a step: over all seeds that were validated there."""

    bits: int
    entry: str
    step: int
    seeds: int
    mean: float
    lowest: float
    highest: float


def table(ring: Ring) -> list[Row]:
    """The rows: the float network, then by bits, the best on the first set (or in validation) first."""
    groups: dict[tuple[int, str], list[Contender]] = {}
    for contender in ring.contenders:
        groups.setdefault((contender.bits, contender.entry), []).append(contender)
    rows = [_row(ring, group) for group in groups.values()]
    widths = [rows[0].bits, *ring.arena.arena.bits]
    return sorted(rows, key=lambda row: (widths.index(row.bits), -_rank(ring, row)))


def curves(ring: Ring) -> list[Point]:
    """Validation along the way; what is not trained has a single point, at step 0."""
    found: dict[tuple[int, str, int], list[float]] = {}
    for contender in ring.contenders:
        for step, value in _curve(ring, contender):
            found.setdefault((contender.bits, contender.entry, step), []).append(value)
    return [Point(*key, len(values), fmean(values), min(values), max(values)) for key, values in found.items()]


def _curve(ring: Ring, contender: Contender) -> Iterable[tuple[int, float]]:
    if contender.experiment is not None:
        return validation_curve(ring.run(contender)).items()
    result = ring.result(contender)
    return [] if result is None else [(0, result.validation_psnr)]


def _row(ring: Ring, group: Sequence[Contender]) -> Row:
    done = [(contender, result) for contender, result in _done(ring, group)]
    scores = {one.name: [ring.score(*pair, one) for pair in done] for one in ring.sets}
    means = {
        kind: {
            name: Spread.of([float(one["datasets"][name][kind]) for one in told if one])
            for name, told in scores.items()
        }
        for kind in SETS
    }
    first = group[0]
    training = first.experiment.training if first.experiment else None
    budget = None if training is None else (training.epochs * training.steps_per_epoch, training.batch, training.patch)
    return Row(
        entry=first.entry,
        method=first.method,
        bits=first.bits,
        planned=len(group),
        seeds=tuple(contender.seed for contender, _ in done if contender.seed is not None),
        psnr={name: spread for name, spread in means["psnr"].items() if spread},
        ssim={name: spread for name, spread in means["ssim"].items() if spread},
        validation=Spread.of([result.validation_psnr for _, result in done]),
        results=tuple(result for _, result in done),
        engines=tuple(dict.fromkeys(ring.engine_for(*pair) for pair in done)),
        budget=budget,
        kernel=None if training is None else training.kernel,
        protocols=tuple(dict.fromkeys(one["protocol"] for told in scores.values() for one in told if one)),
        unequal=first.unequal,
    )


def _done(ring: Ring, group: Sequence[Contender]) -> Iterator[tuple[Contender, Result]]:
    for contender in group:
        result = ring.result(contender)
        if result is not None and ring.finished(contender):
            yield contender, result


def _rank(ring: Ring, row: Row) -> float:
    spread = row.psnr.get(ring.sets[0].name) if ring.sets else row.validation
    return -math.inf if spread is None else spread.mean
