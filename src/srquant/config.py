"""Frozen settings of a job: plain data that goes down the rooms, is stored in files and refuses unknown keys."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srquant.errors import UserError, unknown

Model = TypeVar("Model", bound=BaseModel)
RangeMethod = Literal["minmax", "percentile", "mse"]


class QuantizationConfig(BaseModel):
    """How a network is quantised; the same config, weights and pictures give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: int = Field(default=8, ge=2, le=8, description="bits of the convolution weights")
    activation_bits: int = Field(default=8, ge=2, le=8, description="bits of the activations")
    placement: str = Field(default="strict", description="which tensors carry which bits; see `PLACEMENTS`")
    ranges: RangeMethod = Field(default="percentile", description="how the range of an activation is chosen")
    percentile: float = Field(default=99.997, gt=50, le=100, description="of the values kept by ranges='percentile'")
    equalize: bool = Field(default=True, description="equalise channels where that lowers the calibration error")
    exact: bool = Field(default=False, description="power-of-two scales and even zero points: all engines agree")


class CalibrationConfig(BaseModel):
    """Which pictures the activation ranges are taken from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(default=100, ge=1, le=100_000, description="pictures taken from the folder, one crop each")
    crop: int = Field(default=96, ge=8, le=1024, description="side of a crop in low-resolution pixels")
    seed: int = Field(default=0, ge=0, description="chooses the pictures and the crops")
    low_resolution: bool = Field(default=False, description="the pictures are network inputs and are not downscaled")


def build(model: type[Model], values: dict[str, object]) -> Model:
    """`model(**values)` with every mistake told in one line.

    Raises:
        UserError: an unknown key (the nearest valid one is named) or a value out of its bounds.
    """
    for key in values:
        if key not in model.model_fields:
            raise unknown(f"{model.__name__} key", key, model.model_fields)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} = {first['input']!r}: {first['msg'].lower()}") from error
