"""What an arena refuses before it begins: mistakes that would otherwise be found run by run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srquant.errors import UserError
from srquant.experiments.arena.plan import Contender
from srquant.experiments.arena.ring import Ring
from srquant.experiments.pictures import refuse_shared, set_pictures, training_pictures
from srquant.experiments.starting import make_objective
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.training import TrainingData


def check_pictures(ring: Ring) -> None:
    """Refuse a picture that serves for two of training, validation and scores.

    Raises:
        UserError: there is one, or a folder cannot be read.
    """
    data = ring.arena.data
    assert data.validation is not None
    training, validation = training_pictures(data.train), set_pictures(data.validation)
    refuse_shared("validation", validation, "training", training)
    for one in ring.sets:
        scored = set_pictures(one.folder)
        refuse_shared("benchmark", scored, "training", training)
        refuse_shared("benchmark", scored, "validation", validation)


def check_contenders(ring: Ring, left: Sequence[Contender], progress: Progress) -> None:
    """Refuse a mistake in the last entry before anything is done for the first one.

    Training pictures are prepared here, which takes a while the first time.

    Args:
        ring: the arena.
        left: what is not done yet.
        progress: told while pictures are prepared.

    Raises:
        UserError: an entry cannot be trained on this network at these bits, or pictures cannot be read or are all
            smaller than a patch.
    """
    if not left:
        return
    network = ring.network()
    _check_objectives(left, network)
    for one in ring.sets:
        one.digest(ring.info.scale)
    trainings = [contender.experiment.training for contender in left if contender.experiment is not None]
    ring.validation(max([ring.arena.training.validation_pictures, *(each.validation_pictures for each in trainings)]))
    folders = [Path(folder) for folder in ring.arena.data.train]
    for training in {(each.patch, each.unreadable): each for each in trainings}.values():
        TrainingData(folders, ring.info.scale, training, channels=ring.info.channels, progress=progress)


def _check_objectives(left: Sequence[Contender], network: SRNetwork) -> None:
    seen: set[tuple[str, int]] = set()
    for contender in left:
        if contender.experiment is None or (contender.entry, contender.bits) in seen:
            continue
        seen.add((contender.entry, contender.bits))
        try:
            make_objective(contender.experiment, network)
        except UserError as error:
            raise UserError(f"entry '{contender.entry}' at {contender.bits} bit: {error}") from error
