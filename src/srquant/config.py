"""Frozen settings of a job: plain data that goes down the rooms, is stored in files and refuses unknown keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from srquant.errors import UserError

SCRATCH = "scratch"
"""The word in place of weights for a network that starts from random ones."""

_PLAINER = {"model_type": "input should be a table of keys", "tuple_type": "input should be a list"}
"""Words for what pydantic tells in Python's terms."""

Model = TypeVar("Model", bound=BaseModel)
Share = Annotated[float, Field(ge=0, lt=1)]
RangeMethod = Literal["minmax", "percentile", "mse"]
CalibrationMode = Literal["range", "select", "tame"]


class QuantizationConfig(BaseModel):
    """How a network is quantised; the same config, weights and pictures give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: int = Field(default=8, ge=2, le=8, description="bits of the convolution weights")
    activation_bits: int = Field(default=8, ge=2, le=8, description="bits of the activations")
    placement: str = Field(default="strict", description="which tensors carry which bits; see `PLACEMENTS`")
    ranges: RangeMethod = Field(default="percentile", description="how the range of an activation is chosen")
    percentile: float = Field(default=99.997, gt=50, le=100, description="of the values kept by ranges='percentile'")
    equalize: bool = Field(default=True, description="equalise channels where that lowers the calibration error")
    weight_rounding: Literal["compensated", "nearest"] = Field(
        default="compensated",
        description="weights rounded so that errors cancel on the pictures, or each by itself",
    )
    exact: bool = Field(default=False, description="power-of-two scales and even zero points: all engines agree")
    clip: Literal["fold", "keep"] = Field(
        default="fold", description="a clip at the output: left to the saturating picture grid, or an operation"
    )
    output_range: Literal["picture", "calibrated"] = Field(
        default="picture", description="grid of the output: that of pictures, or from its values and one step more"
    )
    rest: Literal["int8", "float"] = Field(
        default="int8", description="what is outside the low-bit layers; 'float', as in papers, cannot be deployed"
    )


class CalibrationConfig(BaseModel):
    """Which pictures the activation ranges are taken from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(default=100, ge=1, le=100_000, description="pictures taken from the folder, one crop each")
    crop: int = Field(default=96, ge=8, le=1024, description="side of a crop in low-resolution pixels")
    seed: int = Field(default=0, ge=0, description="chooses the pictures and the crops")
    low_resolution: bool = Field(default=False, description="the pictures are network inputs and are not downscaled")
    mode: CalibrationMode = Field(
        default="range",
        description="crops as they are, those without overshoot, or all tamed; see srquant.methods.cfqp",
    )
    gain: float = Field(default=1.0, gt=0, le=4, description="factor of all pixel values of the crops")
    offset: float = Field(default=0.0, ge=-255, le=255, description="added to all pixel values of the crops")
    noise: float = Field(default=0.0, ge=0, le=1, description="share of uniform noise in the crops; 1: nothing else")


class TrainingConfig(BaseModel):
    """How long, how fast and on what patches a network is trained; says nothing about the method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=60, ge=1, le=1_000_000, description="epochs, those without gradient steps included")
    steps_per_epoch: int = Field(default=1000, ge=1, le=10_000_000, description="steps of an epoch")
    batch: int = Field(default=16, ge=1, le=65_536, description="patches of a step, over all devices")
    patch: int = Field(default=48, ge=4, le=4096, description="side of a patch in low-resolution pixels")
    learning_rate: float = Field(default=1e-4, gt=0, le=10, allow_inf_nan=False, description="of Adam, at the start")
    schedule: Literal["step", "cosine", "constant"] = Field(
        default="step", description="how learning rates fall: by gamma every decay_epochs, along a cosine, not at all"
    )
    decay_epochs: int = Field(default=10, ge=1, description="epochs between two decays of schedule='step'")
    gamma: float = Field(default=0.5, gt=0, le=1, description="factor of one decay of schedule='step'")
    warm_up_steps: int = Field(default=0, ge=0, description="steps in which learning rates rise linearly")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), description="of Adam")
    epsilon: float = Field(default=1e-8, gt=0, le=1, description="of Adam")
    weight_decay: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False, description="of Adam, decoupled: AdamW")
    gradient_clip: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="largest norm of all gradients; without it no clipping"
    )
    seed: int = Field(default=1, ge=0, lt=2**63, description="of the data order, the patches and the start values")
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="of the convolutions; quantisers compute in float32 always"
    )
    kernel: Literal["eager", "compiled", "fused", "integer"] = Field(
        default="eager", description="how quantised layers compute in training; see srquant.quantizers.acceleration"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of averaged parameters; without it none are kept"
    )
    validate_every: int | None = Field(default=None, ge=1, description="steps between validations; by default an epoch")
    validation_pictures: int = Field(default=10, ge=1, description="pictures of a validation, the first ones by name")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    unreadable: Literal["refuse", "skip"] = Field(
        default="refuse", description="a picture that cannot be read: stop and name it, or name it and go on"
    )


class NamedChoice(BaseModel):
    """A network or a method by its name, with settings that only it knows and checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(description="the word to ask for it by")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class DataConfig(BaseModel):
    """The pictures of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[str, ...] = Field(default=(), description="folders of high-resolution pictures")
    validation: str | None = Field(default=None, description="folder of pictures to choose by; never a benchmark set")


class Published(BaseModel):
    """The scores that a paper or its code reports for an experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="where the numbers are from")
    psnr: dict[str, float] = Field(default_factory=dict, description="mean PSNR on Y in dB by benchmark set")
    ssim: dict[str, float] = Field(default_factory=dict, description="mean SSIM on Y by benchmark set")


class Experiment(BaseModel):
    """Everything that one training is made of; presets and files of one's own have this form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str | None = Field(
        default=None, description=f"float checkpoint to start from; '{SCRATCH}': random weights, so by default in float"
    )
    weights_sha256: str | None = Field(default=None, description="digest that the checkpoint has to have")
    network: NamedChoice = Field(description="name, and the keys of its config")
    quantization: QuantizationConfig | None = Field(default=None, description="how to quantise; without it, in float")
    method: NamedChoice | None = Field(default=None, description="name, and its options; without it, in float")
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    paper: Published | None = Field(default=None, description="the numbers to reach")

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.quantization is None) != (self.method is None):
            given, absent = ("quantization", "method") if self.method is None else ("method", "quantization")
            raise ValueError(f"[{given}] without [{absent}]: a quantised training has both, a float one neither")
        return self


def build(model: type[Model], values: Mapping[str, Any], within: str = "") -> Model:
    """`model(**values)` with every mistake told in one line.

    Args:
        model: what to build.
        values: plain data; tables inside are the settings of the models inside `model`.
        within: dotted path of `values` in a larger whole, for the messages.

    Raises:
        UserError: an unknown key (the nearest valid one is named) or a value out of its bounds.
    """
    _refuse_unknown_keys(model, values, within, list(_keys(model, within)))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = _joined(within, *map(str, first["loc"]))
        if first["type"] == "missing":
            raise UserError(f"the key '{name}' is missing") from error
        if not first["loc"]:
            raise UserError(first["msg"].removeprefix("Value error, ")) from error
        told = _PLAINER.get(first["type"], first["msg"].lower())
        raise UserError(f"{name} = {first['input']!r:.80}: {told}") from error


def _refuse_unknown_keys(model: type[BaseModel], values: Mapping[str, Any], at: str, everywhere: list[str]) -> None:
    """Raise the error for the first key that `model`, or a model inside it, does not have."""
    for key, value in values.items():
        inner = _inner(model, key)
        if key not in model.model_fields and model.model_config.get("extra") != "allow":
            raise _unknown_key(model, key, at, everywhere)
        if inner is not None and isinstance(value, Mapping):
            _refuse_unknown_keys(inner, value, _joined(at, key), everywhere)


def _unknown_key(model: type[BaseModel], key: str, at: str, everywhere: list[str]) -> UserError:
    """The error that names that key of another table, the nearest one beside it, or the nearest one anywhere."""
    beside = {name: _joined(at, name) for name in model.model_fields}
    anywhere = {path.rpartition(".")[2]: path for path in everywhere}
    hint = ""
    for paths, cutoff in ((anywhere, 1.0), (beside, 0.5), (anywhere, 0.8)):
        near = difflib.get_close_matches(key, paths, n=1, cutoff=cutoff)
        if near and not hint:
            hint = f"; did you mean '{paths[near[0]]}'?"
    return UserError(f"unknown {model.__name__} key '{_joined(at, key)}'; known: {', '.join(beside)}{hint}")


def _keys(model: type[BaseModel], at: str) -> Iterator[str]:
    """The dotted paths of all keys of a model and of the models inside it."""
    for name in model.model_fields:
        yield _joined(at, name)
        inner = _inner(model, name)
        if inner is not None:
            yield from _keys(inner, _joined(at, name))


def _inner(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model that a key holds, or None where it holds plain data."""
    if key not in model.model_fields:
        return None
    annotation = model.model_fields[key].annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = [kind for kind in parts if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
