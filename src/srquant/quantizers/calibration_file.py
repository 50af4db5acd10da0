"""The calibration file: the range of every tensor as JSON, to look at, to change by hand, to quantise with again.

It holds all that calibration found (ranges, channel factors) and what it found it with (pictures and their hashes,
settings, digest of the weights), so the same weights and the same file give the same artefact; without pictures
where every weight is rounded by itself, else with the same pictures.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

import srquant
from srquant.config import QuantizationConfig, build
from srquant.errors import UserError
from srquant.files import atomic_path
from srquant.networks.info import SRNetwork
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.ranges import Range

_FIXED = "fixed"
_WIDENED = ", widened for black and white"


class TensorRange(BaseModel):
    """The interval that one tensor's grid is made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lower: float = Field(allow_inf_nan=False, description="smallest value to represent")
    upper: float = Field(allow_inf_nan=False, description="largest value to represent")
    chosen: str = Field(default="by hand", description="how; 'fixed' for grids that cannot be chosen")


class CalibrationFile(BaseModel):
    """What a calibration found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = Field(default=1, description="of this file")
    version: str = Field(description="of the srquant that wrote it")
    network: str = Field(description="name of the network's family")
    network_config: dict[str, Any] = Field(description="what rebuilds the network")
    weights_sha256: str = Field(description="digest of the float weights, see `weights_sha256`")
    quantization: QuantizationConfig = Field(description="the settings to quantise with")
    calibration: dict[str, Any] = Field(description="which pictures, with their hashes")
    ranges: dict[str, TensorRange] = Field(description="by tensor")
    channel_factors: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="by convolution, what equalisation divided its output channels by"
    )

    def to_json(self) -> str:
        """The text of the file; the same calibration gives the same text."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"

    def sha256(self) -> str:
        """Digest of that text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            UserError: the path cannot be written.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def calibration_file(network: QuantizedNetwork, weights: str) -> CalibrationFile:
    """The file of a network that was just calibrated.

    Args:
        network: from `srquant.quantizers.calibration.quantize_network`.
        weights: `weights_sha256` of the float network.
    """
    how = network.quantization
    chosen = f"{how.ranges} {how.percentile}" if how.ranges == "percentile" else how.ranges
    ranges = {}
    for name, quantizer in network.activation_quantizers().items():
        grid = quantizer.deployed_grid()
        lower, upper = network.ranges.get(name, (grid.lower, grid.upper))
        how_chosen = _FIXED if quantizer.fixed else chosen + _WIDENED * (name in network.widened)
        ranges[name] = TensorRange(lower=lower, upper=upper, chosen=how_chosen)
    factors = {name: tuple(float(f"{f:.9g}") for f in each) for name, each in network.channel_factors.items()}
    return CalibrationFile(
        version=srquant.__version__,
        network=network.info.name,
        network_config=_plain(network.network_config),
        weights_sha256=weights,
        quantization=how,
        calibration=network.calibration,
        ranges=ranges,
        channel_factors=factors,
    )


def read_calibration_file(path: Path) -> CalibrationFile:
    """Read a calibration file; whether it fits a network is checked by `quantize_with`.

    Raises:
        UserError: it cannot be read, is not JSON, or has an unknown key, a missing one or a value of the wrong kind.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no calibration file: {error}") from error
    if not isinstance(told, dict):
        raise UserError(f"'{path}' is no calibration file: it holds no table of keys")
    try:
        file = build(CalibrationFile, told)
        _check_pictures(file.calibration.get("pictures", []))
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    return file


def quantize_with(network: SRNetwork, file: CalibrationFile) -> QuantizedNetwork:
    """Quantise a network by what a calibration file says; the artefact records the file's digest.

    Raises:
        UserError: the file is of another network, names a tensor that is not there, lacks one, gives a fixed grid
            another range, or a range or a channel factor is impossible.
    """
    config = _plain(asdict(network.collapsed().config))
    if (file.network, file.network_config) != (network.name, config):
        given, wanted = (_told(*one) for one in ((file.network, file.network_config), (network.name, config)))
        raise UserError(f"the ranges are those of another network: {given}, not {wanted}")
    quantized = QuantizedNetwork(network, file.quantization, channel_factors=file.channel_factors, join_sum=True)
    grids = {name: q.deployed_grid() for name, q in quantized.activation_quantizers().items() if q.fixed}
    ranges: dict[str, Range] = {}
    for name, given in file.ranges.items():
        grid = grids.get(name)
        if grid is None or (given.lower, given.upper) != (grid.lower, grid.upper):
            ranges[name] = given.lower, given.upper
    quantized.use_ranges(ranges)
    quantized.widened = frozenset(name for name in ranges if file.ranges[name].chosen.endswith(_WIDENED))
    quantized.equalized = bool(file.channel_factors)
    quantized.calibration = {**file.calibration, "ranges_file_sha256": file.sha256()}
    return quantized.eval()


def weights_sha256(network: SRNetwork) -> str:
    """SHA-256 over names, kinds, shapes and bytes of a float network's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_pictures(told: object) -> None:
    """Refuse what is no list of pictures' records."""
    if not (isinstance(told, list) and all(isinstance(one, dict) for one in told)):
        raise UserError(f"calibration.pictures = {told!r:.80}: allowed is a list with a table for each picture")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON tells it."""
    return json.loads(json.dumps(config))


def _told(name: str, config: dict[str, Any]) -> str:
    return f"{name} ({', '.join(f'{key}={value}' for key, value in config.items())})"
