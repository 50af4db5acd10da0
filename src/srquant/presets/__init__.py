"""Presets: one TOML file per published experiment, with the paper's numbers, and what was measured with it here."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from srquant.config import Experiment, build
from srquant.errors import UserError, unknown
from srquant.settings import changed, merged, read_toml

_SUFFIX = ".toml"
_RESULTS = "results.toml"
_BELOW = "preset"
"""The key of a file that takes everything it does not say from a preset."""


class Measured(BaseModel):
    """What a preset scored here, with all that a number has to name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    psnr: dict[str, float] = Field(description="mean PSNR on Y in dB by benchmark set")
    ssim: dict[str, float] = Field(description="mean SSIM on Y by benchmark set")
    engine: str = Field(description="what computed the pictures")
    placement: str = Field(description="which tensors carry which bits")
    budget: str = Field(description="steps, batch and patch")
    sha256: str = Field(description="of the measured file")


def names() -> list[str]:
    """The presets by name: network, scale, and for quantised ones method and bits."""
    found = (entry.name for entry in files(__name__).iterdir() if entry.name != _RESULTS)
    return sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX))


def text(name: str) -> str:
    """The file of a preset.

    Raises:
        UserError: there is none of that name; the nearest is told.
    """
    if name not in names():
        raise unknown("preset", name, names(), listed_by="srquant presets")
    return (files(__name__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def measured() -> dict[str, Measured]:
    """What was measured, by preset; those that are not in it were not trained yet."""
    return read_measured((files(__name__) / _RESULTS).read_text(encoding="utf-8"))


def read_measured(content: str) -> dict[str, Measured]:
    """Measured scores by preset from TOML, one table a preset.

    Raises:
        UserError: something that a number has to name is missing.
    """
    return {name: build(Measured, table, within=name) for name, table in tomllib.loads(content).items()}


def open_experiment(source: Path | str, words: Sequence[str] = ()) -> Experiment:
    """An experiment from the name of a preset or a TOML file.

    A file may hold `preset = "NAME"`: what it does not say itself is taken from that preset.

    Args:
        source: a preset's name, or a path that ends in `.toml`.
        words: changes such as `training.epochs=3`.

    Raises:
        UserError: no such preset or file, another file or a folder, an unknown key, or a value that is not allowed.
    """
    if not str(source).endswith(_SUFFIX):
        if str(source) not in names():
            _refuse_path(Path(source))
        return build(Experiment, changed(tomllib.loads(text(str(source))), words))
    values = read_toml(Path(source))
    try:
        return build(Experiment, changed(_with_preset(values), words))
    except UserError as error:
        raise UserError(f"'{source}': {error}") from error


def _refuse_path(path: Path) -> None:
    """Tell of a path that is there what it is, rather than that no preset has its name."""
    try:
        found = "a folder" if path.is_dir() else "no TOML file" if path.exists() else None
    except OSError:
        return
    if found is not None:
        raise UserError(f"'{path}' is {found}; allowed: the name of a preset, or a file that ends in {_SUFFIX}")


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    below = values.get(_BELOW)
    if below is None:
        return values
    above = {key: value for key, value in values.items() if key != _BELOW}
    return merged(tomllib.loads(text(str(below))), above)
