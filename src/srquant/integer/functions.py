"""Functions of a single number as tables of codes, and whether a runtime's own function gives the same table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from srquant.quantizers.grid import Grid

Real = NDArray[np.float64]

_MARGIN = 2.0**-11
"""Of a code: far more than float32 and a runtime's polynomials leave open at 256 codes."""


def _sigmoid(x: Real) -> Real:
    return 1 / (1 + np.exp(-np.maximum(x, -700)))


FUNCTIONS: dict[str, Callable[[Real], Real]] = {
    "sigmoid": _sigmoid,
    "centred sigmoid": lambda x: _sigmoid(x) - 0.5,
    "tanh": np.tanh,
    "silu": lambda x: x * _sigmoid(x),
}
"""By the names of `srquant.quantizers.structure.LOOKUPS`."""


def table_of(function: str, source: Grid, target: Grid, factor: float = 1.0, shift: float = 0.0) -> NDArray[np.uint8]:
    """The output codes of all 256 input codes, uint8 [256], of factor * function + shift.

    The function is taken in float64 and its value rounded to float32, in which tensors are held before they are
    quantised: where the result only comes near a tie, as SiLU does for large numbers, everybody sees the tie.
    """
    real = (_values(function, source) * factor + shift).astype(np.float32)
    codes = np.rint(real / np.float32(target.scale)) + target.zero_point
    return np.clip(codes, 0, target.maximum_code).astype(np.uint8)


def is_robust(table: NDArray[np.uint8], function: str, source: Grid, target: Grid) -> bool:
    """Whether a table is that of the function alone, and none of its values is near a tie of the rounding.

    Every careful float32 implementation between dequantising and quantising then gives the table.
    """
    if function not in FUNCTIONS or not np.array_equal(table, table_of(function, source, target)):
        return False
    scaled = _values(function, source) / target.scale + target.zero_point
    inside = scaled[(scaled > -1) & (scaled < target.maximum_code + 1)]
    return bool((np.abs(inside - np.floor(inside) - 0.5) > _MARGIN).all())


def _values(function: str, source: Grid) -> Real:
    """The function of every input code's real value."""
    return FUNCTIONS[function]((np.arange(256.0) - source.zero_point) * source.scale)
