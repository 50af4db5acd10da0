"""An arena in its folder: what it was begun with, and what every contender came to so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from srquant.config import Experiment
from srquant.errors import UserError
from srquant.experiments.arena import Arena, Contender, contenders
from srquant.experiments.scoring import SCORES_FOLDER, engine_of
from srquant.experiments.starting import start_network
from srquant.experiments.training import Trained
from srquant.files import atomic_path, sha256
from srquant.imaging import find_pictures, open_set
from srquant.networks.info import SRNetwork

SETTINGS_FILE = "arena.json"
"""What an arena was begun with."""
RUNS_FOLDER = "runs"
_RESULT_FILE = "result.json"


class Result(BaseModel):
    """What a contender came to, scores of benchmark sets aside.

    Attributes:
        sha256: of the artefact, of the float checkpoint, or of the simulated state's list of contents.
        simulated_because: why a quantised network cannot run as integers; None where it can.
        placement: which tensors carry how many bits.
        validation_psnr: of the state that is scored, in dB, simulated in float32.
        steps: of the training, those that only gather statistics included.
        gradient_steps: of them, those that learn.
        step_ms: median milliseconds of a training step; None where nothing was timed.
        peak_megabytes: held in training above what was held before; None where nothing was measured.
        weight_levels: the most levels of low-bit weights in an output channel; None in float.
        activation_levels: the most levels of a low-bit tensor; None in float.
        bit_operations: for an output of `output_size`.
        storage_bytes: of the weights, packed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    simulated_because: str | None = None
    placement: str
    validation_psnr: float
    steps: int = 0
    gradient_steps: int = 0
    step_ms: float | None = None
    peak_megabytes: float | None = None
    weight_levels: int | None = None
    activation_levels: int | None = None
    bit_operations: int
    storage_bytes: int


@dataclass(frozen=True)
class Ring:
    """An arena in its folder.

    Attributes:
        arena: what is compared.
        folder: where everything is kept.
        benchmarks: sets to score on.
        engine: what runs deployed networks; see `srquant.experiments.scoring.engine_of`.
    """

    arena: Arena
    folder: Path
    benchmarks: tuple[Path, ...] = ()
    engine: str = "auto"

    def __post_init__(self) -> None:
        names = self.sets()
        if len(set(names)) < len(names):
            raise UserError(f"two benchmark sets have the same name: {', '.join(names)}")

    def network(self) -> SRNetwork:
        """The float network that every contender starts from."""
        network = self.arena.network
        assert network is not None
        digest = self.arena.weights_sha256
        return start_network(Experiment(weights=self.arena.weights, weights_sha256=digest, network=network))

    def sets(self) -> list[str]:
        """Names of the benchmark sets."""
        return [open_set(folder, 1).name for folder in self.benchmarks]

    def run(self, contender: Contender) -> Path:
        """The folder of a contender."""
        return self.folder / RUNS_FOLDER / contender.run

    def result(self, contender: Contender) -> Result | None:
        """What a contender came to; None where it is not finished."""
        try:
            return Result.model_validate_json((self.run(contender) / _RESULT_FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def save_result(self, contender: Contender, result: Result) -> None:
        """Keep what a contender came to."""
        with atomic_path(self.run(contender) / _RESULT_FILE) as temporary:
            temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def score(self, contender: Contender, result: Result, name: str) -> dict[str, Any] | None:
        """The scores of a contender on a set, as `Evaluation.to_json` tells them; None where there are none yet."""
        try:
            told = json.loads((self.run(contender) / SCORES_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if (told["sha256"], told["engine"]) == (result.sha256, self.engine_for(contender, result)) else None

    def engine_for(self, contender: Contender, result: Result) -> str:
        """What scores a contender."""
        if contender.quantization is None:
            return "torch"
        because = result.simulated_because
        return engine_of(Trained(self.run(contender), True, 0, 0, simulated_because=because), self.engine)

    def finished(self, contender: Contender) -> bool:
        """Whether nothing is left to do for a contender."""
        result = self.result(contender)
        return result is not None and all(self.score(contender, result, name) for name in self.sets())


def begin(ring: Ring, *, resume: bool) -> None:
    """Take a folder for an arena, or go on with the one in it.

    Raises:
        UserError: the folder holds something else, an arena with other settings, weights or pictures, or, without
            `resume`, one that is not finished. Settings with which no run was begun are forgotten.
    """
    folder, path = ring.folder, ring.folder / SETTINGS_FILE
    now = _settings(ring.arena)
    if path.exists() and (folder / RUNS_FOLDER).exists():
        try:
            was = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"'{path}' cannot be read: {error}") from error
        if was != now:
            raise UserError(f"the arena in '{folder}' was begun with {_difference(was, now)}; name another folder")
        if not resume and not all(map(ring.finished, contenders(ring.arena))):
            raise UserError(f"the arena in '{folder}' is not finished: go on with it (--resume) or name another folder")
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not the folder of an arena")
    if folder.is_dir() and any(file.name != SETTINGS_FILE for file in folder.iterdir()):
        raise UserError(f"the folder '{folder}' is not empty and holds no arena: name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def _settings(arena: Arena) -> dict[str, Any]:
    """Plain data that tells an arena from another one, wherever its weights and pictures lie."""
    told = arena.model_dump(mode="json", exclude={"weights", "weights_sha256", "data"})
    assert arena.data.validation is not None
    return {
        **told,
        "weights": None if arena.weights is None else sha256(Path(arena.weights)),
        "training pictures": _pictures(arena.data.train),
        "validation pictures": _pictures([arena.data.validation]),
    }


def _pictures(folders: Sequence[str]) -> str:
    """Digest of the names and sizes of all files."""
    nested = [Path(folder) / "HR" if (Path(folder) / "HR").is_dir() else Path(folder) for folder in folders]
    listing = [f"{path.name} {path.stat().st_size}" for folder in nested for path in find_pictures(folder)]
    return hashlib.sha256("\n".join(listing).encode(errors="surrogateescape")).hexdigest()


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> str:
    """The first setting that is another one."""
    key = next(key for key in [*was, *now] if was.get(key) != now.get(key))
    old, new, name = was.get(key), now.get(key), f"{at}{key}"
    if isinstance(old, dict) and isinstance(new, dict):
        return _difference(old, new, f"{name}.")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return _difference(_numbered(old), _numbered(new), f"{name} ")
    if name in ("weights", "training pictures", "validation pictures"):
        return f"other {name}"
    return f"another {name}: {old!r:.60}, not {new!r:.60}"


def _numbered(items: Sequence[Any]) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items, 1)}
