"""What writes a LiteRT file: the tensors of a graph as tensors of the file, and the file's own ends.

Codes are stored as int8 so that the largest code of a grid is 127: saturation then clips at the upper end of grids of
fewer than 8 bits too, and for 8 bits it is the code minus 128. Every tensor tells its true scale and zero point, so
that runtimes which compute on real numbers see the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from srquant.integer.graph import IntegerGraph
from srquant.integer.litert_file import FileBuilder
from srquant.quantizers.grid import Grid

PictureKind = Literal["uint8", "int8"]


class Writer:
    """Writes the operations of a prepared graph one after the other.

    Attributes:
        graph: from `srquant.integer.litert_rewrites.prepare`.
        file: where tensors and operators go.
        index: the file's tensor of every tensor of the graph that is made already.
    """

    def __init__(self, graph: IntegerGraph, height: int, width: int) -> None:
        self.graph = graph
        self.height, self.width = height, width
        self.file = FileBuilder()
        self.index: dict[str, int] = {}

    def picture(self, io: PictureKind) -> int:
        """Make the tensor of the picture that the graph reads; the file's own input."""
        grid = self.graph.tensors[self.graph.input].grid
        shape = [1, self.height, self.width, self.graph.info.channels]
        given = self.file.tensor("picture", shape, io, grid.scale, 0 if io == "uint8" else -128)
        codes = given
        if io == "uint8":
            codes = self.file.tensor("picture_int8", shape, "int8", grid.scale, -128)
            self.file.operator("QUANTIZE", [given], codes, "QuantizeOptions")
        if grid.zero_point:
            shift = self.file.constant("mean", np.full((1, 1, 1, 1), -1, np.int8), grid.scale * grid.zero_point)
            shifted = self.file.tensor("picture_centred", shape, "int8", grid.scale, zero_code(grid))
            codes = self.file.operator("ADD", [codes, shift], shifted, "AddOptions")
        self.index[self.graph.input] = codes
        return given

    def enlarged(self, io: PictureKind) -> int:
        """The file's output."""
        made, grid = self.index[self.graph.output], self.graph.tensors[self.graph.output].grid
        if io == "int8" and grid.maximum_code == 255:
            return made
        zero_point = grid.zero_point - (128 if io == "int8" else 0)
        output = self.file.tensor("enlarged", self.file.shape(made), io, grid.scale, zero_point)
        return self.file.operator("QUANTIZE", [made], output, "QuantizeOptions")

    def write(
        self,
        kind: str,
        inputs: Sequence[int],
        tensor: str,
        shape: Sequence[int],
        options: str | None = None,
        *,
        within: bool = False,
        **settings: Any,
    ) -> None:
        """Make a tensor of the graph by one operator, and keep it above the lower end of its grid.

        Args:
            kind: as of `FileBuilder.operator`, like `inputs`, `options` and `settings`.
            inputs: tensors of the file.
            tensor: of the graph.
            shape: of the tensor, [N, H, W, C].
            options: name of the operator's options.
            within: the operator does not go below the lower end by itself.
            settings: fields of the options.
        """
        grid = self.graph.tensors[tensor].grid
        clipped = grid.maximum_code < 255 and not within
        made = self.codes(f"{tensor}_unclipped" if clipped else tensor, shape, grid)
        self.file.operator(kind, inputs, made, options, **settings)
        if clipped:
            made = self.limit("MAXIMUM", made, tensor, grid, 0)
        self.index[tensor] = made

    def limit(
        self,
        kind: Literal["MAXIMUM", "MINIMUM"],
        source: int,
        name: str,
        grid: Grid,
        code: int | NDArray[np.uint8],
    ) -> int:
        """Keep codes above (MAXIMUM) or below (MINIMUM) a code of their grid, one for all or one per channel, [C]."""
        ends = (np.asarray(code, np.int16) + offset(grid)).astype(np.int8).reshape(1, 1, 1, -1)
        end = self.file.constant(f"{name}_end", ends, *label(grid))
        made = self.codes(name, self.file.shape(source), grid)
        return self.file.operator(kind, [source, end], made, "MaximumMinimumOptions")

    def sides(self, amount: int) -> int:
        """The constant that tells a padding to add `amount` rows and columns on every side."""
        sides = np.array([[0, 0], [amount, amount], [amount, amount], [0, 0]], np.int32)
        return self.file.constant(f"sides_{amount}", sides)

    def codes(self, name: str, shape: Sequence[int], grid: Grid) -> int:
        """Add a tensor of codes of a grid."""
        return self.file.tensor(name, shape, "int8", *label(grid))


def offset(grid: Grid) -> int:
    """What is added to a code to store it as int8."""
    return 127 - grid.maximum_code


def zero_code(grid: Grid) -> int:
    """The stored code of zero."""
    return grid.zero_point + offset(grid)


def label(grid: Grid) -> tuple[float, int]:
    """Scale and zero point of stored codes."""
    return grid.scale, zero_code(grid)
