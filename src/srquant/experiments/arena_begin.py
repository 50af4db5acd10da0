"""How an arena takes its folder: a new one, or one that holds it already, as it was or with other entries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srquant.config import Experiment, build
from srquant.errors import UserError
from srquant.experiments.arena import POST_TRAINING, Arena, Contender, contenders
from srquant.experiments.arena_ring import FAILURE_FILE, RUNS_FOLDER, Ring
from srquant.experiments.scoring import pictures_digest
from srquant.experiments.training import ARTEFACT_FILE, CONFIG_FILE
from srquant.files import atomic_path, sha256
from srquant.imaging import find_pictures
from srquant.quantizers.artefact import is_artefact, load_artefact
from srquant.settings import read_toml
from srquant.training import load_checkpoint
from srquant.training.checkpoint import find_checkpoint
from srquant.training.session import own_folder

SETTINGS_FILE = "arena.json"
"""What an arena was last called with."""

_WEIGHTS, _TRAINING, _VALIDATION = "weights", "training pictures", "validation pictures"
_COMMON = (_WEIGHTS, _TRAINING, _VALIDATION, "network", "quantization", "calibration", "training")
"""What has to stay; so has `arena.unequal`."""


def begin(ring: Ring, *, resume: bool) -> None:
    """Take a folder for an arena, or go on with the one in it.

    Bit widths, seeds and entries may be other ones than before: runs that are there stay, and count where they are
    asked for. A run whose entry has changed is begun anew if it failed, or made no more than one step.

    Raises:
        UserError: the folder holds something else, an arena with other common settings, weights or pictures, a run
            that its entry no longer describes or that another process trains, or, without `resume`, an arena that is
            not finished. Settings with which no run was begun are forgotten.
    """
    folder, path = ring.folder, ring.folder / SETTINGS_FILE
    now = _settings(ring.arena)
    if path.exists() and (folder / RUNS_FOLDER).exists():
        was, same = _common(path), _common_of(now)
        if was != same:
            raise UserError(f"the arena in '{folder}' was begun with {_difference(was, same)}; name another folder")
        outdated = _outdated(ring)
        if not resume and (outdated or not all(map(ring.finished, contenders(ring.arena)))):
            raise UserError(f"the arena in '{folder}' is not finished: go on with it (--resume) or name another folder")
        for run in outdated:
            with own_folder(run):
                shutil.rmtree(run)
    else:
        _take(folder)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def _take(folder: Path) -> None:
    """Make a new folder, or make sure that there is nothing in it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not the folder of an arena")
    if folder.is_dir() and any(file.name != SETTINGS_FILE for file in folder.iterdir()):
        raise UserError(f"the folder '{folder}' is not empty and holds no arena: name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}") from error


def _settings(arena: Arena) -> dict[str, Any]:
    """Plain data that tells an arena from another one, wherever its weights and pictures lie."""
    told = arena.model_dump(mode="json", exclude={"weights", "weights_sha256", "data"})
    assert arena.data.validation is not None
    return {
        **told,
        _WEIGHTS: None if arena.weights is None else sha256(Path(arena.weights)),
        _TRAINING: _pictures(arena.data.train),
        _VALIDATION: _pictures([arena.data.validation]),
    }


def _pictures(folders: Sequence[str]) -> str:
    """Digest of the pictures of all folders."""
    nested = [Path(folder) / "HR" if (Path(folder) / "HR").is_dir() else Path(folder) for folder in folders]
    return pictures_digest(path for folder in nested for path in find_pictures(folder))


def _common(path: Path) -> dict[str, Any]:
    """What the arena of a settings file has in common for all entries."""
    try:
        return _common_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error


def _common_of(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: told[key] for key in _COMMON}, "arena": {"unequal": told["arena"]["unequal"]}}


def _outdated(ring: Ring) -> list[Path]:
    """The runs that have to be begun anew, since their entries have changed.

    Raises:
        UserError: an entry has changed whose run came further than that.
    """
    found: list[Path] = []
    for contender in contenders(ring.arena):
        run = ring.run(contender)
        was, now = _begun(run), _wanted(contender)
        if was is None or was == now:
            continue
        if ring.result(contender) is not None or not _came_to_nothing(run):
            raise UserError(
                f"entry '{contender.entry}': its run '{run}' was begun with {_difference(was, now)}; rename the entry, "
                "or remove that folder"
            )
        found.append(run)
    return found


def _begun(run: Path) -> dict[str, Any] | None:
    """The settings of its own that a run was begun with; None where none was, and for the float network."""
    config, artefact = run / CONFIG_FILE, run / ARTEFACT_FILE
    if config.exists():
        return _told(build(Experiment, read_toml(config)))
    if is_artefact(artefact):
        return _calibration(load_artefact(artefact).quantization.model_dump(mode="json"))
    return None


def _wanted(contender: Contender) -> dict[str, Any]:
    """The same of a contender."""
    if contender.experiment is not None:
        return _told(contender.experiment)
    return _calibration({} if contender.quantization is None else contender.quantization.model_dump(mode="json"))


def _told(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json", include={"method", "quantization", "training"})


def _calibration(quantization: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": {"name": POST_TRAINING}, "quantization": dict(quantization)}


def _came_to_nothing(run: Path) -> bool:
    """Whether a training failed, or made no more than one step."""
    if (run / FAILURE_FILE).exists() or find_checkpoint(run, "last") is None:
        return True
    return load_checkpoint(run, "last").step <= 1


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> str:
    """The first setting that is another one."""
    key = next(key for key in [*was, *now] if was.get(key) != now.get(key))
    old, new, name = was.get(key), now.get(key), f"{at}{key}"
    if isinstance(old, dict) and isinstance(new, dict):
        return _difference(old, new, f"{name}.")
    if name in (_WEIGHTS, _TRAINING, _VALIDATION):
        return f"other {name}"
    return f"another {name}: {old!r:.60}, not {new!r:.60}"
