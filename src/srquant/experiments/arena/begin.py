"""How an arena takes its folder: a new one, or one that holds it already, as it was or with other entries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srquant.config import Experiment, build
from srquant.errors import UserError
from srquant.experiments.arena.checks import check_contenders, check_pictures
from srquant.experiments.arena.plan import POST_TRAINING, Arena, Contender
from srquant.experiments.arena.ring import FAILURE_FILE, RUNS_FOLDER, Ring
from srquant.experiments.pictures import set_pictures, training_pictures
from srquant.experiments.scoring import pictures_digest
from srquant.experiments.training import ARTEFACT_FILE, CONFIG_FILE
from srquant.files import atomic_path, sha256
from srquant.progress import Progress, Silent
from srquant.quantizers.artefact import is_artefact, load_artefact
from srquant.settings import read_toml
from srquant.training import load_checkpoint
from srquant.training.checkpoint import find_checkpoint
from srquant.training.session import LOCK_FILE, own_folder

SETTINGS_FILE = "arena.json"
"""What an arena was last called with."""
_OLD = ".old-"
"""Before the name of a run that is being removed."""
_WEIGHTS, _TRAINING, _VALIDATION = "weights", "training pictures", "validation pictures"
_COMMON = (_WEIGHTS, _TRAINING, _VALIDATION, "network", "quantization", "calibration", "training")
"""What has to stay; so has `arena.unequal`."""


def begin(ring: Ring, *, resume: bool, progress: Progress | None = None) -> None:
    """Take a folder for an arena, or go on with the one in it.

    Bit widths, seeds and entries may be other ones than before: runs that are there stay, and count where they are
    asked for. A run whose entry has changed is removed, and begun anew, if its loss was no number, or if it made no
    more than one step. Nothing is left behind where a new arena is refused.

    Args:
        ring: the arena, its folder and its benchmark sets.
        resume: go on with an arena that is not finished.
        progress: told while training pictures are prepared, and of runs that are removed.

    Raises:
        UserError: pictures that serve for two things, cannot be read or are smaller than a patch; an entry that cannot
            be trained; weights that cannot be used; or the folder holds something else, an arena with other common
            settings, weights or pictures, a run that its entry no longer describes, or, without `resume`, an arena
            that is not finished; or another process works in it.
    """
    folder, path, shown = ring.folder, ring.folder / SETTINGS_FILE, progress or Silent()
    now = _settings(ring.arena)
    check_pictures(ring)
    if not (path.exists() and (folder / RUNS_FOLDER).exists()):
        _refuse_full(folder)
        check_contenders(ring, ring.contenders, shown)
        with own_folder(folder):
            _write(path, now)
        return
    with own_folder(folder):
        was, same = _common(path), _common_of(now)
        if was != same:
            raise UserError(f"the arena in '{folder}' was begun with {_difference(was, same)}; name another folder")
        outdated = _outdated(ring)
        left = [one for one in ring.contenders if ring.run(one) in outdated or not ring.finished(one)]
        if left and not resume:
            raise UserError(f"the arena in '{folder}' is not finished: go on with it (--resume) or name another folder")
        check_contenders(ring, left, shown)
        for leftover in (folder / RUNS_FOLDER).glob(f"{_OLD}*"):
            shutil.rmtree(leftover)
        for run, why in outdated.items():
            _remove(run)
            shown.warn(f"removed '{run}', to begin it anew: {why}")
        _write(path, now)


def _refuse_full(folder: Path) -> None:
    """Refuse a place for a new arena that is not empty."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not the folder of an arena")
    if folder.is_dir() and any(file.name not in (SETTINGS_FILE, LOCK_FILE) for file in folder.iterdir()):
        raise UserError(f"the folder '{folder}' is not empty and holds no arena: name another")


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _remove(run: Path) -> None:
    """Take a run away; half a one never has its name."""
    doomed = run.with_name(_OLD + run.name)
    with own_folder(run):
        run.rename(doomed)
    shutil.rmtree(doomed)


def _settings(arena: Arena) -> dict[str, Any]:
    """Plain data that tells an arena from another one, wherever its weights and pictures lie."""
    told = arena.model_dump(mode="json", exclude={"weights", "weights_sha256", "data"})
    assert arena.data.validation is not None
    return {
        **told,
        _WEIGHTS: None if arena.weights is None else sha256(Path(arena.weights)),
        _TRAINING: pictures_digest(training_pictures(arena.data.train)),
        _VALIDATION: pictures_digest(set_pictures(arena.data.validation)),
    }


def _common(path: Path) -> dict[str, Any]:
    """What the arena of a settings file has in common for all entries."""
    try:
        return _common_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error


def _common_of(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: told[key] for key in _COMMON}, "arena": {"unequal": told["arena"]["unequal"]}}


def _outdated(ring: Ring) -> dict[Path, str]:
    """The runs that have to be begun anew, and why.

    Raises:
        UserError: an entry has changed whose run came too far for that.
    """
    found: dict[Path, str] = {}
    for contender in ring.contenders:
        run = ring.run(contender)
        was, now = _begun(run), _wanted(contender)
        is_lost = was is None and contender.experiment is not None and _has_files(run)
        if was == now or (was is None and not is_lost):
            continue
        change = "settings that are missing" if was is None else _difference(was, now)
        vain = _came_to_nothing(run)
        if ring.result(contender) is not None or vain is None:
            raise UserError(
                f"entry '{contender.entry}': its run '{run}' was begun with {change}; rename the entry, or remove that "
                "folder"
            )
        found[run] = f"it was begun with {change}; {vain}"
    return found


def _begun(run: Path) -> dict[str, Any] | None:
    """The settings of its own that a run was begun with; None where none was, and for the float network."""
    config, artefact = run / CONFIG_FILE, run / ARTEFACT_FILE
    if config.exists():
        return _told(build(Experiment, read_toml(config)))
    if is_artefact(artefact) and find_checkpoint(run, "last") is None:
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


def _came_to_nothing(run: Path) -> str | None:
    """In words how a training failed, or that it made no more than one step; None where it came further."""
    newest, failure = find_checkpoint(run, "last"), run / FAILURE_FILE
    if failure.exists():
        behind = "" if newest is None else f" behind checkpoint '{newest.name}'"
        return f"it failed{behind}: {' '.join(failure.read_text(encoding='utf-8').split())}"
    step = 0 if newest is None else load_checkpoint(run, "last").step
    return f"it came to step {step}" if step <= 1 else None


def _has_files(run: Path) -> bool:
    return run.is_dir() and any(not file.name.startswith(".") for file in run.iterdir())


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> str:
    """The first setting that is another one."""
    key = next(key for key in [*was, *now] if was.get(key) != now.get(key))
    old, new, name = was.get(key), now.get(key), f"{at}{key}"
    if isinstance(old, dict) and isinstance(new, dict):
        return _difference(old, new, f"{name}.")
    if name in (_WEIGHTS, _TRAINING, _VALIDATION):
        return f"other {name}"
    return f"another {name}: {old!r:.60}, not {new!r:.60}"
