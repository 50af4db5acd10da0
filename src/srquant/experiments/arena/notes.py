"""What stands under the table of an arena: what its numbers hold for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from srquant.evaluation.costs import output_size
from srquant.experiments.arena.plan import steps
from srquant.experiments.arena.ring import Ring
from srquant.experiments.arena.table import Row
from srquant.files import sha256
from srquant.metrics import Protocol


def notes(ring: Ring, rows: Sequence[Row]) -> list[str]:
    """What the numbers of the table hold for."""
    info, arena = ring.info, ring.arena
    assert arena.weights is not None
    height, width = output_size(info.scale)
    training, seeds = arena.training, arena.arena.seeds
    protocols = dict.fromkeys([*(told for row in rows for told in row.protocols), str(Protocol.standard(info.scale))])
    placements = dict.fromkeys(told for row in rows if not row.unequal for told in row.told_once("placement"))
    lines = [
        f"{info.name} x{info.scale}, float weights {sha256(Path(arena.weights))[:16]}",
        f"budget {steps(training)} steps of {training.batch} patches of {training.patch}x{training.patch}, "
        f"{training.precision}, seeds {', '.join(map(str, seeds))}; entries without gradient steps are calibrated, on "
        "crops of the training pictures",
        *(f"protocol {protocol}" for protocol in protocols),
        *(f"placement {placement}" for placement in placements if placement != "float32"),
        "scores are means over the seeds +- their sample standard deviation; validation is PSNR in dB of the state "
        "that is scored, simulated in float32",
        f"levels: the most that low-bit weights/activations take; BitOPs: MACs x weight bits x activation bits for "
        f"{width}x{height} out; kB: packed weights",
        *_training(rows),
        "SHA-256 of every seed's network: in table.csv (column sha256, in the order of the seeds) and in table.json",
    ]
    lines += [
        f"{row.entry} at {row.bits} bit: levels counted per channel: {_tensors(row.largest('offset_tensors'))}; "
        "BitOPs count the bits of their windows, while convolutions read their 8-bit codes"
        for row in rows
        if row.largest("offset_tensors")
    ]
    lines += [
        f"{row.entry} at {row.bits} bit: {why}" for row in rows for why in row.told_once("simulated_because") if why
    ]
    lines += [
        f"{row.entry} at {row.bits} bit is not on equal terms (*): {'; '.join(row.unequal)}"
        for row in rows
        if row.unequal
    ]
    return lines


def _training(rows: Sequence[Row]) -> Iterator[str]:
    """How times and memory of training were measured, and on what."""
    trained = [row for row in rows if row.kernel is not None and row.results]
    if not trained:
        return
    kernels = _shared("kernel", ((row.kernel or "", row.entry) for row in trained))
    devices = _shared("device", ((told, row.entry) for row in trained for told in row.devices()))
    yield (
        f"ms/step ({kernels}; {devices}): median over the rows of the log of steps that learn, the first row and "
        "validations left out; peak MB: most memory that training, validations included, held above what was held "
        "before, of the process, or of the CUDA device where that trained; both hold for the machine and its load, "
        "and neither is told of a row on several devices"
    )


def _shared(what: str, told: Iterable[tuple[str, str]]) -> str:
    """The value of most entries, and every other one with its entries."""
    entries: dict[str, dict[str, None]] = {}
    for value, entry in told:
        entries.setdefault(value, {})[entry] = None
    (most, _), *others = sorted(entries.items(), key=lambda pair: -len(pair[1]))
    return f"{what} {most}" + "".join(f", {value} of {' and '.join(names)}" for value, names in others)


def _tensors(count: int | None) -> str:
    return f"{count} tensor{'s' * (count != 1)} with shifted channels"
