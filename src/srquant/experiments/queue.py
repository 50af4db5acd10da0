"""A folder of experiments, done one after another in the order of their names, in as many sittings as it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from srquant.config import Experiment
from srquant.errors import UserError, unknown
from srquant.experiments.results import add_result, read_results
from srquant.experiments.scoring import kept_score, result_row, score
from srquant.experiments.starting import check
from srquant.experiments.training import CONFIG_FILE, NETWORK_FILE, train
from srquant.presets import open_experiment
from srquant.progress import Progress, Silent

RUN = "run:"
"""Before the name of an experiment of the same queue whose network another one starts from."""

RESULTS_FILE = "results.csv"

Status = Literal["finished", "out of time", "failed"]


@dataclass(frozen=True)
class Entry:
    """One experiment of a queue; its name is that of its file."""

    name: str
    experiment: Experiment

    @property
    def starts_from(self) -> str | None:
        """The experiment whose network this one starts from."""
        weights = self.experiment.weights or ""
        return weights.removeprefix(RUN) if weights.startswith(RUN) else None


@dataclass(frozen=True)
class Outcome:
    """How far an experiment came in this sitting."""

    name: str
    status: Status
    message: str


@dataclass(frozen=True)
class Places:
    """Where a queue reads and writes.

    Attributes:
        runs: a folder per experiment, and the table of results.
        data: folders of training pictures, in place of those of the experiments.
        validation: folder of pictures to choose the best states by, in place of those of the experiments.
        benchmarks: sets to score what was trained.
    """

    runs: Path
    data: tuple[Path, ...] = ()
    validation: Path | None = None
    benchmarks: tuple[Path, ...] = ()

    @property
    def results(self) -> Path:
        """The table of results."""
        return self.runs / RESULTS_FILE


def find_entries(folder: Path) -> list[Entry]:
    """The experiments of a folder (`NNN-name.toml`), in the order of their names.

    Raises:
        UserError: no folder, no experiment in it, a mistake in one, or one that starts from none before it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'")
    entries: list[Entry] = []
    for path in sorted(folder.glob("*.toml")):
        entry = Entry(path.stem, open_experiment(path))
        try:
            check(entry.experiment)
        except UserError as error:
            raise UserError(f"'{path}': {error}") from error
        if entry.starts_from is not None and entry.starts_from not in [earlier.name for earlier in entries]:
            raise unknown(f"'{path}': earlier experiment", entry.starts_from, [earlier.name for earlier in entries])
        entries.append(entry)
    if not entries:
        raise UserError(f"there is no experiment (*.toml) in '{folder}'")
    return entries


def standing(entries: Sequence[Entry], runs: Path) -> dict[str, str]:
    """How each experiment stands: finished, under way, next, or for which one it waits."""
    done = {row["experiment"] for row in read_results(runs / RESULTS_FILE)}
    told = {}
    for entry in entries:
        folder, needed = runs / entry.name, entry.starts_from
        if entry.name in done:
            told[entry.name] = "finished"
        elif folder.exists():
            told[entry.name] = "under way"
        else:
            waits = needed is not None and not (runs / needed / NETWORK_FILE).exists()
            told[entry.name] = f"waits for {needed}" if waits else "next"
    return told


def run_queue(
    entries: Sequence[Entry],
    places: Places,
    *,
    time_budget: float | None = None,
    devices: int = 1,
    accelerator: str = "auto",
    engine: str = "auto",
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Do what is not done yet: train or go on training, score, write the row of results.

    Whatever happens in between, killing included, the next call goes on where this one was; an experiment that
    fails does not keep the others from being done, unless they start from it.

    Args:
        entries: from `find_entries`.
        places: where to read and write.
        time_budget: seconds after which no further step and no further set is begun; one of them is done always.
        devices: processes to train with. With several, one call trains one experiment.
        accelerator: cpu, cuda or auto.
        engine: what runs the deployed networks that are scored; see `srquant.experiments.scoring.engine_of`.
        progress: told of everything.

    Yields:
        How each experiment that was not finished before came out, until the time is over.

    Raises:
        UserError: the folder of the runs cannot be written.
    """
    end = None if time_budget is None else time.monotonic() + time_budget
    try:
        places.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use '{places.runs}' for runs: {error.strerror}") from error
    sets = [benchmark.resolve() for benchmark in places.benchmarks]
    names = [path.parent.name if path.name == "HR" else path.name for path in sets]
    if len(set(names)) < len(names):
        raise UserError(f"two benchmark sets have the same name: {', '.join(names)}")
    outcome = None
    for entry in entries:
        if not _has_work(entry, entries, places):
            continue
        left = None if end is None else max(end - time.monotonic(), 0.0)
        if left == 0 and outcome is not None:
            return
        try:
            outcome = _sitting(entry, places, left, devices, accelerator, engine, progress or Silent())
        except (UserError, RuntimeError, OSError, MemoryError) as error:
            outcome = Outcome(entry.name, "failed", " ".join(str(error).split()) or type(error).__name__)
        yield outcome
        if outcome.status == "out of time" or (devices > 1 and outcome.status == "finished"):
            return


def _has_work(entry: Entry, entries: Sequence[Entry], places: Places) -> bool:
    """Whether an experiment has no row yet, or its network is not there although another one starts from it."""
    done = {row["experiment"] for row in read_results(places.results)}
    wanted = entry.name in {other.starts_from for other in entries if other.name not in done}
    return entry.name not in done or (wanted and not (places.runs / entry.name / NETWORK_FILE).exists())


def _sitting(
    entry: Entry,
    places: Places,
    time_budget: float | None,
    devices: int,
    accelerator: str,
    engine: str,
    progress: Progress,
) -> Outcome:
    """Train one experiment and score it, as far as the time goes."""
    end = None if time_budget is None else time.monotonic() + time_budget
    folder = places.runs / entry.name
    trained = train(
        entry.experiment,
        folder,
        data=places.data,
        validation=places.validation,
        weights=_weights(entry, places.runs),
        resume=(folder / CONFIG_FILE).exists(),
        devices=devices,
        accelerator=accelerator,
        time_budget=time_budget,
        progress=progress,
    )
    if not trained.finished:
        return Outcome(entry.name, "out of time", f"step {trained.step} of {trained.steps}")
    scores: list[dict[str, Any]] = []
    began = False
    for benchmark in places.benchmarks:
        told = kept_score(trained, benchmark, engine)
        if told is None:
            if began and end is not None and time.monotonic() >= end:
                return Outcome(entry.name, "out of time", f"scored on {len(scores)} of {len(places.benchmarks)} sets")
            told, began = score(trained, benchmark, engine, progress), True
        scores.append(told)
    row = result_row(entry.name, entry.experiment, trained, scores, engine)
    add_result(places.results, row)
    return Outcome(entry.name, "finished", f"validation {row['validation_psnr'] or '-'} dB, on {row['engine']}")


def _weights(entry: Entry, runs: Path) -> Path | None:
    """The network that an experiment starts from, where that is one of this queue."""
    if entry.starts_from is None:
        return None
    weights = runs / entry.starts_from / NETWORK_FILE
    if not weights.exists():
        raise UserError(f"it starts from '{entry.starts_from}', which is not trained yet")
    return weights
