"""One experiment from its settings to a file: network, objective, pictures, loop, result."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from srquant.config import DataConfig, Experiment, build
from srquant.errors import NotFiniteError, UserError
from srquant.experiments.pictures import refuse_shared, set_pictures, training_pictures
from srquant.experiments.starting import check, make_objective, sha256_of_weights, start_network
from srquant.files import sha256
from srquant.networks.info import SRNetwork
from srquant.networks.loading import save_network
from srquant.presets import open_experiment
from srquant.progress import Progress
from srquant.quantizers import QuantizedNetwork, save_artefact
from srquant.quantizers.artefact import load_artefact
from srquant.quantizers.deployment import deploy
from srquant.settings import read_toml, write_toml
from srquant.training import Objective, Reconstruction, TrainingData, Validation, fit, load_checkpoint
from srquant.training.session import LOCK_FILE

NETWORK_FILE = "network.safetensors"
ARTEFACT_FILE = "quantized.safetensors"
CONFIG_FILE = "config.toml"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training came to.

    Attributes:
        folder: of the run.
        finished: all steps are done; False where the time was over first.
        step: the last one done.
        steps: of the whole run.
        validation_psnr: of the state that `model` is in; None without validation pictures.
        model: once finished, the float network, the deployed one, or a quantised one that can only be simulated.
        file: where `model` is stored; None for one that can only be simulated.
        simulated_because: why nothing integer was made of a quantised network.
        sha256: of `file`, or of the list of contents of the checkpoint that `model` is from.
    """

    folder: Path
    finished: bool
    step: int
    steps: int
    validation_psnr: float | None = None
    model: SRNetwork | QuantizedNetwork | None = field(default=None, repr=False)
    file: Path | None = None
    simulated_because: str | None = None
    sha256: str | None = None


def train(
    experiment: Experiment | Path | str,
    folder: Path | str,
    *,
    data: Sequence[Path | str] = (),
    validation: Path | str | None = None,
    weights: Path | str | None = None,
    resume: bool = False,
    devices: int = 1,
    accelerator: str = "auto",
    time_budget: float | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a network, float or quantised, and write what came out of it.

    A float network becomes `network.safetensors` in the folder of the run, a quantised one that can be deployed
    `quantized.safetensors`: the checkpoint with the best validation, or the last one without validation pictures.

    Args:
        experiment: settings, the name of a preset, or a TOML file.
        folder: of the run: settings, checkpoints, log and result.
        data: folders of training pictures, in place of those of the experiment.
        validation: folder of pictures to choose the best state by, in place of that of the experiment.
        weights: float checkpoint to start from, in place of that of the experiment.
        resume: go on with the run in `folder`.
        devices: how many to train on; see `srquant.training.fit`.
        accelerator: cpu, cuda or auto.
        time_budget: seconds, preparation included, after which the run is saved and left; one step is done always.
        progress: told of everything.

    Raises:
        UserError: a mistake in the settings, weights that do not fit, pictures that cannot be used, a folder that
            holds another run, or a training that failed.
    """
    started = time.monotonic()
    if not isinstance(experiment, Experiment):
        experiment = open_experiment(experiment)
    experiment, folder = _changed(experiment, data, validation, weights), Path(folder)
    check(experiment)
    begun = _begun(folder, experiment, resume)
    if begun:
        experiment = _with_first_weights(folder, experiment)
    network = start_network(experiment)
    objective = make_objective(experiment, network)
    if not begun and progress is not None:
        _warn_of_simulation(experiment, progress)
    scale, channels, config = network.info.scale, network.info.channels, experiment.training
    folders, judge = [Path(place) for place in experiment.data.train], experiment.data.validation
    held_back = None if judge is None else Validation(Path(judge), scale, config.validation_pictures, channels)
    if judge is not None:
        refuse_shared("validation", set_pictures(judge), "training", training_pictures(folders))
    pictures = TrainingData(folders, scale, config, channels=channels, progress=progress)
    if not begun and not _follows():
        _write_settings(folder, experiment)
    try:
        result = fit(
            objective,
            pictures,
            held_back,
            config,
            folder,
            devices=devices,
            accelerator={"cuda": "gpu"}.get(accelerator, accelerator),
            resume=begun,
            progress=progress,
            time_budget=None if time_budget is None else max(time_budget - (time.monotonic() - started), 0.0),
        )
    except UserError:
        if not begun:
            _forget_what_never_began(folder)
        raise
    _write_settings(folder, experiment)  # of a run that went on, some may have changed
    steps = config.epochs * config.steps_per_epoch
    if not result.finished:
        return Trained(folder, False, result.step, steps, result.best)
    return _result(network, objective, folder, steps, result.best)


def _changed(
    experiment: Experiment, data: Sequence[Path | str], validation: Path | str | None, weights: Path | str | None
) -> Experiment:
    """The experiment with what the call says in its place, and with pictures."""
    pictures = DataConfig(
        train=tuple(map(str, data)) or experiment.data.train,
        validation=str(validation) if validation is not None else experiment.data.validation,
    )
    if not pictures.train:
        raise UserError("no training pictures: name a folder (--data FOLDER, or data.train in the file)")
    start = str(weights) if weights is not None else experiment.weights
    return experiment.model_copy(update={"data": pictures, "weights": start})


def _begun(folder: Path, experiment: Experiment, resume: bool) -> bool:
    """Whether the folder holds this run already; a new run needs a folder without files.

    Raises:
        UserError: there is something in the folder and `resume` is False, there is nothing to resume, or what is
            there was begun with other settings or weights.
    """
    if _follows():
        return (folder / CONFIG_FILE).exists()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not the folder of a run")
    if not resume:
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"the folder '{folder}' is not empty: go on with its run (--resume) or name another")
        return False
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"there is no run to resume in '{folder}': it has no '{CONFIG_FILE}'")
    before = build(Experiment, read_toml(folder / CONFIG_FILE))
    for part in ("network", "quantization", "method"):
        was, now = getattr(before, part), getattr(experiment, part)
        if was != now:
            raise UserError(
                f"the run in '{folder}' was begun with another {part}: {_difference(was, now)}; "
                f"its own settings are in '{folder / CONFIG_FILE}'"
            )
    return True


def _difference(was: object, now: object) -> str:
    """The first setting that is another one."""
    old, new = (part.model_dump() if part is not None else {} for part in (was, now))  # pyright: ignore[reportAttributeAccessIssue]
    key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
    return f"{key} = {old.get(key)!r}, not {new.get(key)!r}"


def _with_first_weights(folder: Path, experiment: Experiment) -> Experiment:
    """The experiment with the digest of the weights that its run was begun with."""
    first = build(Experiment, read_toml(folder / CONFIG_FILE)).weights_sha256
    return experiment.model_copy(update={"weights_sha256": experiment.weights_sha256 or first})


def _write_settings(folder: Path, experiment: Experiment) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}") from error
    told = experiment.model_copy(update={"weights_sha256": sha256_of_weights(experiment)})
    write_toml(told, folder / CONFIG_FILE)


def _forget_what_never_began(folder: Path) -> None:
    """Remove the folder of a run that has no checkpoint yet, so that the next try finds it empty."""
    if _follows() or (folder / CHECKPOINTS_FOLDER).exists():
        return
    for name in (CONFIG_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        folder.rmdir()


def _follows() -> bool:
    """Whether this process was started by another one to train with it; only the first one writes."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def _warn_of_simulation(experiment: Experiment, progress: Progress) -> None:
    """Tell before the first step that nothing will be deployed."""
    how, method = experiment.quantization, experiment.method
    if how is None or method is None:
        return
    causes = {
        "quantization.rest = 'float' ('int8' can be)": how.rest == "float",
        "method.grid = 'official' ('integer' can be)": method.settings.get("grid") == "official",
    }
    told = " and ".join(cause for cause, holds in causes.items() if holds)
    if told:
        progress.warn(f"what is trained will be a simulation that cannot be deployed: {told}")


def _result(network: SRNetwork, objective: Objective, folder: Path, steps: int, best_score: float | None) -> Trained:
    """The chosen state as a file, or as a simulation where the method or the settings allow nothing else."""
    assert isinstance(objective, nn.Module)
    objective.cpu()
    checkpoint = load_checkpoint(folder, "last")
    if best_score is not None:
        checkpoint = load_checkpoint(folder, "best")
    checkpoint.restore(objective)
    objective.eval()
    score = checkpoint.score
    if isinstance(objective, Reconstruction):
        file = folder / NETWORK_FILE
        save_network(network, file)  # it was trained in place
        return Trained(folder, True, steps, steps, score, network, file, sha256=sha256(file))
    simulated, file = objective.network, folder / ARTEFACT_FILE
    assert isinstance(simulated, QuantizedNetwork)
    simulated.training_facts = {
        **objective.describe(),
        **checkpoint.config,
        "validation_psnr": score,
        "step": checkpoint.step,
    }
    try:
        deployed = deploy(simulated)
    except NotFiniteError:
        raise
    except UserError as error:
        digest = sha256(checkpoint.folder / "manifest.json")
        return Trained(folder, True, steps, steps, score, simulated, None, str(error), digest)
    save_artefact(deployed, file)
    return Trained(folder, True, steps, steps, score, load_artefact(file), file, sha256=sha256(file))
