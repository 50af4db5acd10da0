"""Codes of b bits packed without gaps into bytes, little end first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes of any shape, each within -2^(bits-1)..2^(bits-1)-1 -> uint8 [ceil(n*bits/8)].

    Raises:
        ValueError: a code does not fit.
    """
    offset = 2 ** (bits - 1)
    unsigned = codes.astype(np.int16).ravel() + offset
    if unsigned.size and (unsigned.min() < 0 or unsigned.max() >= 2 * offset):
        raise ValueError(f"codes {codes.min()}..{codes.max()} do not fit into {bits} bits")
    planes = (unsigned[:, None] >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The inverse of `pack`: int8 codes of `shape`.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    count = int(np.prod(shape))
    if packed.size != -(-count * bits // 8):
        raise ValueError(f"{packed.size} bytes do not hold {count} codes of {bits} bits")
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = (planes.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(1)
    return (unsigned - 2 ** (bits - 1)).astype(np.int8).reshape(shape)
