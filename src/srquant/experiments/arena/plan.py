"""What an arena compares: several methods from the same float weights, on the same budget, pictures and placement.

One TOML file tells it (`Arena`). Every entry is trained, or calibrated, at all bits with all seeds; each of these is a
`Contender`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from srquant.config import (
    SCRATCH,
    CalibrationConfig,
    DataConfig,
    Experiment,
    NamedChoice,
    QuantizationConfig,
    TrainingConfig,
    build,
)
from srquant.errors import UserError
from srquant.experiments.starting import check, check_network
from srquant.networks.loading import load_network
from srquant.quantizers.placement import get_placement
from srquant.settings import merged, read_toml

FLOAT = "FP32"
"""Name of the row of the float network."""
POST_TRAINING = "post-training"
"""The method of an entry that has none."""
FLOAT_BITS = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()+-]*")
_PLACEMENT = ("placement", "rest")
_BUDGET = ("batch", "patch", "precision", "validate_every", "validation_pictures")
"""What has to be equal besides the placement and the number of steps."""
_BELONGS: Mapping[str, Mapping[str, str]] = {
    "quantization": {"weight_bits": "arena.bits", "activation_bits": "arena.bits"},
    "training": {"seed": "arena.seeds"},
    "calibration": {"seed": "arena.seeds"},
}
"""Settings that every contender gets from the arena's lists."""

Bits = Annotated[int, Field(ge=2, le=8)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ArenaRules(BaseModel):
    """What every entry goes through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: tuple[Bits, ...] = Field(min_length=1, description="of weights and activations; every entry at each")
    seeds: tuple[Seed, ...] = Field(default=(1,), min_length=1, description="of training or calibration crops")
    unequal: bool = Field(default=False, description="let entries have another placement or budget, and mark them")


class ArenaEntry(BaseModel):
    """One row for each bit width: a method, or calibration alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="of the row")
    method: NamedChoice | None = Field(default=None, description="name, and its options; without it, calibration")
    quantization: dict[str, Any] = Field(default_factory=dict, description="what differs from [quantization]")
    training: dict[str, Any] = Field(default_factory=dict, description="what differs from [training]")


class Arena(BaseModel):
    """Everything that an arena is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str | None = Field(default=None, description="float checkpoint that every entry starts from")
    weights_sha256: str | None = Field(default=None, description="digest that the checkpoint has to have")
    network: NamedChoice | None = Field(default=None, description="what the checkpoint has to hold")
    quantization: QuantizationConfig = Field(default_factory=QuantizationConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    arena: ArenaRules
    entry: tuple[ArenaEntry, ...] = Field(min_length=1, description="the rows")


@dataclass(frozen=True)
class Contender:
    """One entry at one bit width with one seed; or the float network, which has neither method nor seed.

    Attributes:
        entry: name of the row.
        bits: of weights and activations.
        seed: of the training, or of the calibration crops.
        quantization: None for the float network.
        experiment: the training; None where nothing is trained.
        calibration: the crops of post-training quantisation.
        unequal: what differs from the common terms, for people.
    """

    entry: str
    bits: int
    seed: int | None = None
    quantization: QuantizationConfig | None = None
    experiment: Experiment | None = None
    calibration: CalibrationConfig | None = None
    unequal: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name, or what was done without one."""
        if self.experiment is not None and self.experiment.method is not None:
            return self.experiment.method.name
        return "float" if self.quantization is None else POST_TRAINING

    @property
    def run(self) -> str:
        """Name of its folder."""
        return _folder(self.entry) if self.seed is None else f"{_folder(self.entry)}-{self.bits}bit-seed{self.seed}"


def open_arena(
    path: Path,
    *,
    weights: Path | None = None,
    data: Sequence[Path] = (),
    validation: Path | None = None,
) -> Arena:
    """The arena of a TOML file.

    Args:
        path: the file.
        weights: float checkpoint, in place of the file's.
        data: folders of training pictures, in place of the file's.
        validation: folder of pictures to choose the best states by, in place of the file's.

    Raises:
        UserError: no such file, an unknown key, network or placement (the nearest is named), a value that is not
            allowed, an entry on other terms than the rest without `arena.unequal`, or weights or pictures are missing.
    """
    values = read_toml(path)
    try:
        arena = _built(values)
        told = DataConfig(
            train=tuple(map(str, data)) or arena.data.train,
            validation=arena.data.validation if validation is None else str(validation),
        )
        start = arena.weights if weights is None else str(weights)
        arena = arena.model_copy(update={"data": told, "weights": start})
        _check(arena)
        arena = arena.model_copy(update={"network": _network(arena)})
        contenders(arena)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    return arena


def contenders(arena: Arena) -> list[Contender]:
    """The float network, then every entry at all bits, seed by seed.

    Raises:
        UserError: a mistake in an entry, or one on other terms than the rest without `arena.unequal`.
    """
    found = [Contender(FLOAT, FLOAT_BITS)]
    for seed in arena.arena.seeds:
        for bits in arena.arena.bits:
            for entry in arena.entry:
                try:
                    found.append(_contender(arena, entry, bits, seed))
                except UserError as error:
                    raise UserError(f"entry '{entry.name}': {error}") from error
    return found


def _built(values: Mapping[str, Any]) -> Arena:
    listed = values.get("entry", [])
    if not isinstance(listed, list) or not all(isinstance(table, dict) for table in listed):
        raise UserError("entries are tables of their own: [[entry]], with a name each")
    entries = [build(ArenaEntry, table, f"entry {number}") for number, table in enumerate(listed, 1)]
    return build(Arena, {**values, "entry": entries})


def _check(arena: Arena) -> None:
    """Refuse what no contender could be made of."""
    for table, keys in _BELONGS.items():
        for key in sorted(getattr(arena, table).model_fields_set & set(keys)):
            raise UserError(f"{table}.{key} is told by {keys[key]}")
    if arena.network is not None:
        check_network(arena.network)
    get_placement(arena.quantization.placement)
    if arena.weights in (None, SCRATCH):
        raise UserError(
            "every entry starts from the same float weights: name a checkpoint (--weights FILE, or 'weights' in the "
            "file)"
        )
    if not arena.data.train:
        raise UserError("no training pictures: name a folder (--data FOLDER, or data.train in the file)")
    if arena.data.validation is None:
        raise UserError(
            "no validation pictures: name a folder (--validation FOLDER, or data.validation in the file); states are "
            "chosen and curves are drawn by them"
        )
    folders = {_folder(FLOAT): FLOAT}
    for entry in arena.entry:
        if not _NAME.fullmatch(entry.name):
            raise UserError(f"entry '{entry.name}': allowed in a name are letters, digits, spaces and . _ ( ) + -")
        twin = folders.setdefault(_folder(entry.name), entry.name)
        if twin is not entry.name:
            raise UserError(
                f"entry '{entry.name}': there is '{twin}' already; names have to differ in letters or digits"
            )
    for name, numbers in (("bits", arena.arena.bits), ("seeds", arena.arena.seeds)):
        if len(set(numbers)) < len(numbers):
            raise UserError(f"arena.{name} = {list(numbers)}: each may be there once")


def _contender(arena: Arena, entry: ArenaEntry, bits: int, seed: int) -> Contender:
    how = _overridden(
        arena.quantization, entry.quantization, "quantization", {"weight_bits": bits, "activation_bits": bits}
    )
    common, network = _common_training(arena), _network(arena)
    assert isinstance(how, QuantizationConfig)
    get_placement(how.placement).layout(network.name)
    if entry.method is None:
        if entry.training:
            raise UserError("without a method it is calibrated, not trained: 'training' says nothing")
        if how.rest == "float":
            raise UserError("post-training quantisation runs as integers: quantization.rest = 'float' needs a method")
        unequal = _differences(arena, how, common)
        crops = arena.calibration.model_copy(update={"seed": seed})
        return Contender(entry.name, bits, seed, how, calibration=crops, unequal=unequal)
    training = _overridden(common, entry.training, "training", {"seed": seed})
    assert isinstance(training, TrainingConfig)
    experiment = Experiment(
        weights=arena.weights,
        weights_sha256=arena.weights_sha256,
        network=network,
        quantization=how,
        method=entry.method,
        training=training,
        data=arena.data,
    )
    check(experiment)
    return Contender(entry.name, bits, seed, how, experiment, unequal=_differences(arena, how, training))


def _network(arena: Arena) -> NamedChoice:
    """The network that the file names, or that the checkpoint holds."""
    assert arena.weights is not None
    return arena.network or NamedChoice(name=load_network(Path(arena.weights)).name)


def _common_training(arena: Arena) -> TrainingConfig:
    """The training that entries change: validated as often whatever their epochs are."""
    every = arena.training.validate_every or arena.training.steps_per_epoch
    return arena.training.model_copy(update={"validate_every": every})


def _overridden(
    common: QuantizationConfig | TrainingConfig, own: Mapping[str, Any], table: str, given: Mapping[str, Any]
) -> QuantizationConfig | TrainingConfig:
    """The common settings with those of an entry and of the arena's lists in their place."""
    for key in own:
        if key in given:
            raise UserError(f"{table}.{key} is told by {_BELONGS[table][key]}")
    return build(type(common), merged(merged(common.model_dump(), own), given), table)


def _differences(arena: Arena, how: QuantizationConfig, training: TrainingConfig) -> tuple[str, ...]:
    """What is not as everywhere, for people.

    Raises:
        UserError: something is, and the arena compares equals only.
    """
    common = _common_training(arena)
    pairs = [(key, getattr(how, key), getattr(arena.quantization, key)) for key in _PLACEMENT]
    pairs.append(("steps", steps(training), steps(common)))
    pairs += [(key, getattr(training, key), getattr(common, key)) for key in _BUDGET]
    found = tuple(f"{key} = {own!r}, not {usual!r}" for key, own, usual in pairs if own != usual)
    if found and not arena.arena.unequal:
        raise UserError(f"{found[0]}: only equals are compared; arena.unequal = true lets it in and marks its row")
    return found


def steps(training: TrainingConfig) -> int:
    """Steps of a whole training, those without gradients included."""
    return training.epochs * training.steps_per_epoch


def _folder(name: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-")
