"""Checkpoints that are whole or not there, whenever the process is killed.

A checkpoint is a folder `last-<step>` or `best-<step>`: parts of at most 15 MiB, and a manifest with the size and
SHA-256 of each. It is written under a temporary name, synchronised to disk and renamed; only then is the older one
removed. The newest folder of a kind is the one that counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from srquant.errors import UserError

Kind = Literal["last", "best"]

VERSION = 1
_PART = 15 * 2**20
_MANIFEST = "manifest.json"
_NAME = re.compile(r"(last|best)-(\d+)(?:\.(\d+))?")
_NEW, _OLD = ".new-", ".old-"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        folder: where it was read.
        step: the last one done.
        epoch: of that step.
        score: validation PSNR of this state, None where it was not validated.
        config: plain data of the `TrainingConfig`.
        description: what the objective said of itself.
        content: everything else, as the loop saved it.
    """

    folder: Path
    step: int
    epoch: int
    score: float | None
    config: dict[str, Any]
    description: dict[str, Any]
    content: dict[str, Any]

    def restore(self, objective: nn.Module, *, averaged: bool = True) -> None:
        """Give an objective the trained state.

        Args:
            objective: made as the trained one was.
            averaged: take the moving average of the network's parameters where the run kept one.

        Raises:
            UserError: the objective does not fit the state.
        """
        try:
            objective.load_state_dict(self.content["objective"])
        except RuntimeError as error:
            raise UserError(f"'{self.folder}' does not fit what is trained: {' '.join(str(error).split())}") from error
        kept = self.content["average"]["parameters"]
        if averaged and kept:
            network: nn.Module = objective.network  # pyright: ignore[reportAssignmentType]  # of every objective
            with torch.no_grad():
                for parameter, value in zip(network.parameters(), kept, strict=True):
                    parameter.copy_(value)


def save_checkpoint(folder: Path, kind: Kind, facts: Mapping[str, Any], content: dict[str, Any]) -> Path:
    """Write a checkpoint and remove older ones of its kind.

    Args:
        folder: of the run.
        kind: "last" or "best".
        facts: `step`, `epoch`, `score`, `config` and `description`, readable in the manifest.
        content: tensors and plain data.

    Raises:
        UserError: the folder cannot be written.
    """
    home = folder / "checkpoints"
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        home.mkdir(parents=True, exist_ok=True)
        older = _found(home, kind)
        same = [serial for step, serial, _ in older if step == facts["step"]]
        name = f"{kind}-{facts['step']:08d}" + (f".{max(same) + 1}" if same else "")
        temporary = home / f"{_NEW}{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        parts = []
        view = buffer.getbuffer()
        for index, start in enumerate(range(0, len(view), _PART)):
            part = view[start : start + _PART]
            _write(temporary / f"part-{index:03d}.bin", part)
            entry = {"name": f"part-{index:03d}.bin", "size": len(part), "sha256": hashlib.sha256(part).hexdigest()}
            parts.append(entry)
        manifest = {"version": VERSION, **facts, "parts": parts}
        _write(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        _synchronise(temporary)
        temporary.rename(home / name)
        _synchronise(home)
        for _, _, path in older:
            _remove(path)
    except OSError as error:
        raise UserError(f"cannot write a checkpoint in '{home}': {error.strerror}") from error
    return home / name


def find_checkpoint(folder: Path, kind: Kind) -> Path | None:
    """The newest checkpoint of a kind in a run's folder."""
    found = _found(folder / "checkpoints", kind)
    return found[-1][2] if found else None


def load_checkpoint(folder: Path, kind: Kind = "best") -> Checkpoint:
    """Read the newest checkpoint of a kind, after checking every byte of it; no code in it is run.

    Args:
        folder: of the run.
        kind: "best" by validation, or "last".

    Raises:
        UserError: there is none, it is damaged, or it is of another version.
    """
    path = find_checkpoint(folder, kind)
    if path is None:
        raise UserError(f"there is no '{kind}' checkpoint in '{folder}'")
    try:
        return _read(path)
    except UserError as error:
        other = find_checkpoint(folder, "best" if kind == "last" else "last")
        hint = f"; remove it to fall back to '{other}'" if other else ""
        raise UserError(f"the checkpoint '{path}' is damaged: {error}{hint}") from error


def clean_leftovers(folder: Path) -> None:
    """Remove what killed writers left behind."""
    home = folder / "checkpoints"
    for path in [*home.glob(f"{_NEW}*"), *home.glob(f"{_OLD}*")]:
        shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["version"] != VERSION:
            raise UserError(f"it is of version {manifest['version']}, known is {VERSION}")
        data = bytearray()
        for part in manifest["parts"]:
            piece = (path / Path(part["name"]).name).read_bytes()
            if len(piece) != part["size"] or hashlib.sha256(piece).hexdigest() != part["sha256"]:
                raise UserError(f"'{part['name']}' is not what was written")
            data += piece
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        facts = {name: manifest[name] for name in ("step", "epoch", "score", "config", "description")}
        return Checkpoint(folder=path, content=content, **facts)
    except OSError as error:
        raise UserError(f"'{Path(error.filename or '').name}': {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from error


def _found(home: Path, kind: Kind) -> list[tuple[int, int, Path]]:
    """Step, serial and folder of the checkpoints of a kind, the newest last."""
    if not home.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in home.iterdir())
    return sorted((int(m[2]), int(m[3] or 0), path) for m, path in matches if m and m[1] == kind)


def _remove(path: Path) -> None:
    """Take a checkpoint away; half a one never has its name."""
    doomed = path.with_name(_OLD + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _synchronise(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
