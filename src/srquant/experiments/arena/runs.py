"""The runs of an arena: trained or calibrated, measured and scored, in as many sittings as it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from srquant.config import Experiment
from srquant.errors import NotFiniteError, UserError
from srquant.evaluation.costs import bit_operations, largest_levels, output_size, storage_bytes
from srquant.experiments.arena.log import step_milliseconds
from srquant.experiments.arena.memory import recorded_memory, training_memory
from srquant.experiments.arena.plan import Contender, steps
from srquant.experiments.arena.ring import FAILURE_FILE, Result, Ring
from srquant.experiments.queue import Outcome
from srquant.experiments.scoring import score
from srquant.experiments.training import ARTEFACT_FILE, CONFIG_FILE, Trained, train
from srquant.files import atomic_path, sha256
from srquant.jobs import quantize
from srquant.networks.info import SRNetwork
from srquant.progress import Progress, Silent
from srquant.quantizers import QuantizedNetwork, save_artefact
from srquant.quantizers.artefact import is_artefact, load_artefact
from srquant.training import load_checkpoint
from srquant.training.objective import PixelUnits
from srquant.training.session import own_folder


def run_arena(
    ring: Ring, *, time_budget: float | None = None, accelerator: str = "auto", progress: Progress | None = None
) -> Iterator[Outcome]:
    """Do what is not done yet: train or go on training, calibrate, measure, score.

    Whatever happens in between, killing included, the next call goes on where this one was. All entries are done with
    the first seed before any is done with the second. Nothing else is begun where the float network cannot be scored.

    Args:
        ring: an arena that `begin` took a folder for.
        time_budget: seconds after which no further step and no further set is begun; one of them is done always.
        accelerator: cpu, cuda or auto.
        progress: told of everything.

    Yields:
        How each contender that was not finished before came out, until the time is over.

    Raises:
        UserError: another process works on the arena.
    """
    end = None if time_budget is None else time.monotonic() + time_budget
    left = [contender for contender in ring.contenders if not ring.finished(contender)]
    if not left:
        return
    network, shown = ring.network(), progress or Silent()
    with own_folder(ring.folder):
        for number, contender in enumerate(left):
            if number and end is not None and time.monotonic() >= end:
                return
            try:
                outcome = _sitting(ring, contender, network, end, accelerator, shown)
            except (UserError, RuntimeError, OSError, MemoryError) as error:
                outcome = Outcome(contender.run, "failed", " ".join(str(error).split()) or type(error).__name__)
            yield outcome
            if outcome.status == "out of time" or (outcome.status == "failed" and contender.quantization is None):
                return


def _sitting(
    ring: Ring, contender: Contender, network: SRNetwork, end: float | None, accelerator: str, progress: Progress
) -> Outcome:
    """Make one contender's network and score it, as far as the time goes."""
    trained = _trained(ring, contender, network, end, accelerator, progress)
    if not trained.finished:
        return Outcome(contender.run, "out of time", f"step {trained.step} of {trained.steps}")
    result = ring.result(contender)
    if result is None or result.sha256 != trained.sha256:
        result = _result(ring, contender, trained, network)
        ring.save_result(contender, result)
    began = False
    for number, one in enumerate(ring.sets):
        if ring.score(contender, result, one) is not None:
            continue
        if began and end is not None and time.monotonic() >= end:
            return Outcome(contender.run, "out of time", f"scored on {number} of {len(ring.sets)} sets")
        began = True
        score(trained, one.folder, ring.engine, progress)
    engine = ring.engine_for(contender, result)
    return Outcome(contender.run, "finished", f"validation {result.validation_psnr:.3f} dB, on {engine}")


def _trained(
    ring: Ring, contender: Contender, network: SRNetwork, end: float | None, accelerator: str, progress: Progress
) -> Trained:
    """The network of a contender: loaded, calibrated, or trained as far as the time goes."""
    folder = ring.run(contender)
    if contender.experiment is not None:
        return _train(folder, contender.experiment, end, accelerator, progress)
    folder.mkdir(parents=True, exist_ok=True)
    if contender.quantization is None:
        assert ring.arena.weights is not None
        weights = Path(ring.arena.weights)
        score = ring.validation().score(PixelUnits(network), torch.device("cpu"))
        return Trained(folder, True, 0, 0, score, network, weights, sha256=sha256(weights))
    file = folder / ARTEFACT_FILE
    if not file.exists() or not is_artefact(file):
        how, crops = contender.quantization, contender.calibration
        save_artefact(quantize(network, ring.arena.data.train, how, crops, progress=progress), file)
    model = load_artefact(file)
    score = ring.validation().score(model, torch.device("cpu"))
    return Trained(folder, True, 0, 0, score, model, file, sha256=sha256(file))


def _train(folder: Path, experiment: Experiment, end: float | None, accelerator: str, progress: Progress) -> Trained:
    """Train, and note what a loss that is no number said; it would be none the next time, too."""
    failure = folder / FAILURE_FILE
    failure.unlink(missing_ok=True)
    try:
        with training_memory(folder, accelerator):
            return train(
                experiment,
                folder,
                resume=(folder / CONFIG_FILE).exists(),
                accelerator=accelerator,
                time_budget=None if end is None else max(end - time.monotonic(), 0.0),
                progress=progress,
            )
    except NotFiniteError as error:
        with suppress(OSError, UserError), atomic_path(failure) as temporary:
            temporary.write_text(f"{error}\n", encoding="utf-8")
        raise


def _result(ring: Ring, contender: Contender, trained: Trained, network: SRNetwork) -> Result:
    """Everything but the scores."""
    model = trained.model
    assert isinstance(model, SRNetwork | QuantizedNetwork)
    assert trained.validation_psnr is not None
    assert trained.sha256 is not None
    height, width = (side // network.info.scale for side in output_size(network.info.scale))
    told: dict[str, Any] = {
        "sha256": trained.sha256,
        "simulated_because": trained.simulated_because,
        "validation_psnr": trained.validation_psnr,
        "bit_operations": bit_operations(model, height, width),
    }
    if isinstance(model, SRNetwork):
        return Result(**told, placement="float32", storage_bytes=storage_bytes(model))
    weight_levels, activation_levels = largest_levels(model)
    told |= {
        "placement": str(model.placement),
        "weight_levels": weight_levels,
        "activation_levels": activation_levels,
        "offset_tensors": len(model.shifted()),
        "storage_bytes": storage_bytes(model),
    }
    experiment = contender.experiment
    if experiment is not None:
        training, folder = experiment.training, ring.run(contender)
        every, learnt, peaks = steps(training), _gradient_steps(folder), recorded_memory(folder)
        told |= {"steps": every, "gradient_steps": learnt, "devices": tuple(filter(None, peaks))}
        if len(peaks) <= 1:  # neither times nor memory of two devices make one number
            told["step_ms"] = step_milliseconds(folder, training.batch, behind=every - learnt)
            told["peak_megabytes"] = next(iter(peaks.values()), None)
    return Result(**told)


def _gradient_steps(folder: Path) -> int:
    """Steps that Adam took; a step that only gathers statistics takes none."""
    states = load_checkpoint(folder, "last").content["optimizer"]["state"].values()
    return max((int(state["step"]) for state in states), default=0)
