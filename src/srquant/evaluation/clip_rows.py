"""What a clip study holds: its settings, its variants, its rows, and the file they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from srquant.config import CalibrationConfig, QuantizationConfig, RangeMethod
from srquant.errors import UserError
from srquant.files import atomic_path

STUDY_FILE = "study.json"
FLOAT = "float32"
"""Name of the network that is not quantised, among rows and forms."""
SCORES = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y")
"""Names of a row's scores."""

SETS: Mapping[str, tuple[int | None, Mapping[str, Any]]] = {
    "1 natural": (1, {}),
    "5 natural": (5, {}),
    "10 natural": (10, {}),
    "all natural": (None, {}),
    "dark (x 0.5)": (None, {"gain": 0.5}),
    "noise": (20, {"noise": 1.0}),
    "unsaturated": (None, {"mode": "select"}),
    "tamed": (None, {"mode": "tame"}),
}
"""Calibration pictures by name: how many of all, the first ones, and what becomes of them."""

TIMING = ("height", "width", "rounds", "threads")
"""Settings, and facts, that the times depend on and the scores do not."""

_STRICT = ConfigDict(extra="forbid")


def _all_or_none(scores: Mapping[str, float]) -> Mapping[str, float]:
    if scores and set(scores) != set(SCORES):
        raise ValueError(f"allowed are none, or all of {', '.join(SCORES)}")
    return scores


Scores = Annotated[Mapping[str, FiniteFloat], AfterValidator(_all_or_none)]


@dataclass(frozen=True)
class StudySettings:
    """What is the same in all rows.

    Attributes:
        calibration: how many pictures "all" are, which, and what crops.
        ranges: how the ranges of tensors are chosen; channels are not equalised.
        engine: what the scores are computed with.
        height: of the picture that is timed, in low-resolution pixels.
        width: of the same.
        rounds: how often every engine runs it; the median counts.
        threads: of the engines that are told theirs.
    """

    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    ranges: RangeMethod = "minmax"
    engine: str = "torch"
    height: int = 180
    width: int = 320
    rounds: int = 9
    threads: int | None = None


@dataclass(frozen=True)
class Variant:
    """One combination; `pictures` is a key of the calibration sets."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    clip: Literal["removed", "kept"]
    output: Literal["given", "calibrated"]
    pictures: str

    @property
    def form(self) -> str:
        """What a file's time depends on: its operations, not its grids."""
        return f"clip {self.clip}, output {self.output}"

    @property
    def mode(self) -> str:
        """A mode of `srquant.methods.cfqp`, or min-max: what converters do."""
        if self.output == "given":
            return "range"
        return {"unsaturated": "select", "tamed": "tame"}.get(self.pictures, "min-max")

    def quantization(self, ranges: RangeMethod) -> QuantizationConfig:
        """How to quantise."""
        return QuantizationConfig(
            ranges=ranges,
            equalize=False,
            clip="keep" if self.clip == "kept" else "fold",
            output_range="picture" if self.output == "given" else "calibrated",
        )


@dataclass(frozen=True)
class Row:
    """What one variant came to.

    Attributes:
        variant: its choices.
        used: how many pictures it was calibrated on.
        range: of the output tensor before it is a picture; None where its grid is that of pictures.
        scores: means over the set by `SCORES`; none where it could not be quantised.
        bytes: of the packed weights.
        operations: of the integer graph.
        refused: why it could not be quantised; empty where it could.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    variant: Variant
    used: NonNegativeInt = 0
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    scores: Scores = field(default_factory=dict)
    bytes: NonNegativeInt = 0
    operations: NonNegativeInt = 0
    refused: str = ""


@dataclass(frozen=True)
class Study:
    """The whole study.

    Attributes:
        facts: what it was made with, as plain data; a study is only continued with the same, those of `TIMING` apart.
        float_scores: of the float network, as in `Row.scores`.
        rows: the finished ones.
        times: median milliseconds of a run, by form and engine.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    facts: Mapping[str, Any]
    float_scores: Scores = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    times: Mapping[str, Mapping[str, FiniteFloat]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `study.json`; the folder is made where it is missing; whatever interrupts it, the file is whole.

        Raises:
            UserError: the folder cannot be made or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder '{folder}': {error.strerror}") from error
        with atomic_path(folder / STUDY_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Study | None:
        """The study of a folder, or None where none was begun.

        Raises:
            UserError: the file cannot be read, or is not one that `save` writes.
        """
        path = folder / STUDY_FILE
        if not path.exists():
            return None
        try:
            return _STUDY.validate_json(path.read_bytes())
        except OSError as error:
            reason = error.strerror
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].lower())))
        raise UserError(f"'{path}' is not a readable clip study ({reason}): take another folder, or remove it")


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made, before the work that would be lost.

    Raises:
        UserError: it, or the nearest one above that exists, is no folder or cannot be written.
    """
    try:
        nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}") from error
    if not nearest.is_dir():
        raise UserError(f"cannot make the folder '{folder}': '{nearest}' is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot make the folder '{folder}': '{nearest}' is not writable")


def _consistent(study: Study) -> Study:
    for row in study.rows:
        if row.variant.pictures not in SETS:
            raise ValueError(f"unknown pictures '{row.variant.pictures}'")
        if bool(row.scores) == bool(row.refused):
            raise ValueError("a row has either scores or a reason to be without")
    if len({row.variant for row in study.rows}) != len(study.rows):
        raise ValueError("a variant is there twice")
    return study


_STUDY = TypeAdapter(Annotated[Study, AfterValidator(_consistent)])


def variants(count: int, *, clipped: bool) -> Iterator[Variant]:
    """All variants for so many calibration pictures; sets that would be all of them anyway are left out.

    Args:
        count: of the calibration pictures.
        clipped: whether the network has a clip, so that there is one to keep.
    """
    for pictures, (most, _) in SETS.items():
        if most is None or most < count or pictures == "noise":
            for output in ("given", "calibrated"):
                yield Variant("removed", output, pictures)
                if clipped:
                    yield Variant("kept", output, pictures)
