"""The neutral integer graph: one list of operations on codes, the single source of truth for every engine.

Codes are uint8 (whatever their bits), weights int8, accumulators and biases int32. A tensor's real value is
`(code - zero_point) * scale`; all scales are float32. What each operation computes is defined by
`srquant.integer.reference`; engines and file writers translate this list and calibrate nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from srquant.integer.program import Step
from srquant.networks.info import NetworkInfo
from srquant.quantizers.gating import PictureGrid
from srquant.quantizers.grid import Grid


@dataclass(frozen=True)
class Tensor:
    """A value of the graph: [N, channels, H*resolution, W*resolution].

    Attributes:
        kind: `codes` on the grid; `gated`: codes whose scale is chosen picture by picture, `grid` telling its
            zero point and the nominal scale that biases are rounded to; `real`: float32 values on the way to a gate,
            `grid` telling nothing.
    """

    name: str
    channels: int
    resolution: int
    grid: Grid
    kind: Literal["codes", "gated", "real"] = "codes"


@dataclass(frozen=True, eq=False)
class Operation:
    """One step: reads tensors by name, makes the tensor `output`."""

    output: str


@dataclass(frozen=True, eq=False)
class Convolution(Operation):
    """Accumulate in int32, multiply by input scale * weight scale / output scale, round, saturate.

    Attributes:
        weight: int8 [O, I/groups, kH, kW], symmetric, expanded to the int8 range.
        bias: int32 [O] on the accumulator's grid.
        weight_scale: float32 [O].
        padding: rows/columns of the input's zero point added on every side.
        relu: codes below the output's zero point become the zero point.
    """

    input: str
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    weight_scale: NDArray[np.float32]
    padding: int
    groups: int
    relu: bool


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """Sum of two tensors of one shape, each on its own grid."""

    left: str
    right: str


@dataclass(frozen=True, eq=False)
class Multiply(Operation):
    """Product of two tensors; `right` has the shape of `left`, or one channel, or one pixel."""

    left: str
    right: str


@dataclass(frozen=True, eq=False)
class LeakyRelu(Operation):
    """x where x >= 0, slope * x elsewhere; slope float32 [1] or [C] (PReLU)."""

    input: str
    slope: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Requantize(Operation):
    """The same values on another grid."""

    input: str


@dataclass(frozen=True, eq=False)
class Pad(Operation):
    """`amount` rows and columns of one code on every side."""

    input: str
    amount: int
    code: int


@dataclass(frozen=True, eq=False)
class Concatenate(Operation):
    """Channels of all inputs one after another; all share the output's grid."""

    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PixelShuffle(Operation):
    """[C*f*f, H, W] -> [C, f*H, f*W].

    Channels are ordered c*f*f + i*f + j, or, where `blocks_first`, (i*f + j)*C + c: the same pixels for a
    convolution whose output channels were permuted, but copied in whole runs of C bytes.
    """

    input: str
    factor: int
    blocks_first: bool = False


@dataclass(frozen=True, eq=False)
class RepeatChannels(Operation):
    """Every channel `times` times in a row."""

    input: str
    times: int


@dataclass(frozen=True, eq=False)
class SliceChannels(Operation):
    """Channels start..stop-1."""

    input: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Lookup(Operation):
    """A function of one code; input and output have grids of their own.

    Attributes:
        table: uint8 [256], the output code of every input code.
        function: its name for people and file writers.
    """

    input: str
    table: NDArray[np.uint8]
    function: str


@dataclass(frozen=True, eq=False)
class Clip(Operation):
    """Codes kept within lowest..highest, on the same grid."""

    input: str
    lowest: int
    highest: int


@dataclass(frozen=True, eq=False)
class ChannelClip(Operation):
    """Codes of each channel raised to its lowest, then lowered to its highest, on the same grid.

    Attributes:
        lowest: uint8 [C]; all 0 where nothing has to be raised.
        highest: uint8 [C].
    """

    input: str
    lowest: NDArray[np.uint8]
    highest: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FloatProgram(Operation):
    """A small computation in float32 between two grids; see `srquant.integer.program`.

    The last step's value is rounded to the output's grid; it may be [C, 1, 1].
    """

    input: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class GatedRound(Operation):
    """Round a tensor to the grid that a gate chooses for this picture.

    The codes are whole multiples of the picture's scale plus `GATED_ZERO`; the scale is a second result,
    `picture_scale(output)`.
    """

    input: str
    picture_grid: PictureGrid


GATED_ZERO = 128
"""Zero point of gated codes, whatever the picture's own is: at up to 7 bits multiples lie within +-127."""


def picture_scale(tensor: str) -> str:
    """Name of the value that holds a gated tensor's scale, float32 []."""
    return f"{tensor}.picture_scale"


FLOAT_OPERATIONS = (FloatProgram, GatedRound)
"""Operations that no engine computes in integers."""


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """Operations in the order of execution.

    Attributes:
        info: the float network that this came from.
        halo: receptive-field radius in low-resolution pixels, None when tiles cannot be exact.
        input: name of the picture's tensor: codes are pixel values.
        output: name of the enlarged picture's tensor.
        tensors: every tensor by name.
        operations: the list.
        provenance: plain data for people and files: placement, quantisation, calibration, versions.
    """

    info: NetworkInfo
    halo: int | None
    input: str
    output: str
    tensors: Mapping[str, Tensor]
    operations: tuple[Operation, ...]
    provenance: Mapping[str, Any]

    def producer(self, tensor: str) -> Operation | None:
        """The operation that makes a tensor; None for the picture."""
        return next((operation for operation in self.operations if operation.output == tensor), None)

    def readers(self, tensor: str) -> list[Operation]:
        """The operations that read a tensor."""
        return [operation for operation in self.operations if tensor in sources(operation)]

    def left_in_float(self) -> list[str]:
        """Names of the tensors that are made by float operations."""
        return [o.output for o in self.operations if isinstance(o, FLOAT_OPERATIONS)]

    def gates(self) -> list[str]:
        """Names of the tensors whose grid is chosen picture by picture."""
        return [o.output for o in self.operations if isinstance(o, GatedRound)]

    def channel_limits(self) -> dict[str, int]:
        """What offsets of channels cost when the network runs: limits per channel, 1 or 2, by the tensor they limit.

        A tensor of few bits without offsets has one limit for all channels, or none; factors cost nothing.
        """
        clips = [operation for operation in self.operations if isinstance(operation, ChannelClip)]
        return {o.output: 1 + int(o.lowest.any()) for o in clips}

    def is_gated(self, operation: Operation) -> bool:
        """Whether an operation reads or makes a tensor without a grid of its own."""
        without = {name for name, tensor in self.tensors.items() if tensor.kind != "codes"}
        return not without.isdisjoint((operation.output, *sources(operation)))


def sources(operation: Operation) -> tuple[str, ...]:
    """Names of the tensors that an operation reads."""
    found: list[str] = []
    for field in fields(operation):
        value = getattr(operation, field.name)
        if field.name in ("input", "left", "right"):
            found.append(value)
        elif field.name == "inputs":
            found.extend(value)
    return tuple(found)
