"""Offsets of few bits: the levels that factors are trained on, and how a file holds windows and factors.

With offsets of b bits, a factor is one of 2^b levels, steps of 4/2^b octaves around 1:

    A_c = 2^(k_c * 4/2^b),   k_c a signed number of b bits;   at 4 bit quarter octaves from 1/4 to 2^1.75

A window starts at most 2^b - 1 codes above the lowest one of its tensor, since it was moved by a signed number of b
bits and the carrier's ends only bring windows together. So a file needs that lowest start and b bits per channel for
the windows, and `k_c` in b bits for the factors. Factors that went into the steps of a convolution are in no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srquant.quantizers.packing import pack, unpack

OCTAVES = 4
"""That all levels of a factor span, whatever their number."""

WIDE_PARTS = {"lowest": np.uint8, "factors": np.float32}
"""What a file holds of a tensor whose offsets have no bits of their own; [C] each."""

PACKED_PARTS = ("offset_bits", "first", "windows", "octaves")
"""What it holds where they have, all uint8: b [], the lowest start [], starts above it and factors, packed."""


def factor_levels(offset_bits: int) -> NDArray[np.float32]:
    """The factors that signed numbers of `offset_bits` bits stand for, ascending: float32 [2^b]."""
    half = 2 ** (offset_bits - 1)
    return np.exp2(np.arange(-half, half) * (OCTAVES / 2**offset_bits)).astype(np.float32)


def round_factors(logarithms: Tensor, levels: Tensor) -> Tensor:
    """Factors rounded to the nearest level in octaves; `d A/d log A = A`, straight-through.

    There is no gradient that drives a logarithm further beyond the levels' end.

    Args:
        logarithms: float32 [C], log A (natural).
        levels: as `factor_levels` gives them, on the device of the logarithms.
    """
    return _RoundFactors.apply(logarithms, levels)


class _RoundFactors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logarithms: Tensor, levels: Tensor) -> Tensor:
        half = len(levels) // 2
        wanted = logarithms * (len(levels) / (OCTAVES * math.log(2)))
        codes = torch.round(wanted).clamp(-half, half - 1)
        places = (codes.nan_to_num() + half).long()
        factors = torch.where(codes.isnan(), codes, levels[places])
        ctx.save_for_backward(wanted, codes, factors)
        return factors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        wanted, codes, factors = ctx.saved_tensors
        by_logarithm = grads[0] * factors
        return by_logarithm.masked_fill(drives_beyond(by_logarithm, wanted, codes), 0), None


def drives_beyond(gradient: Tensor, wanted: Tensor, held: Tensor) -> Tensor:
    """Where a step against the gradient drives a number further beyond the whole numbers that hold it; bool [C].

    Args:
        gradient: float32 [C], by the number.
        wanted: the number.
        held: the whole number in its place; more than 1 off, it is an end.
    """
    too_low, too_high = held > wanted + 1, held < wanted - 1
    return (too_high & (gradient < 0)) | (too_low & (gradient > 0))


def packed_offsets(
    lowest: NDArray[np.uint8] | None, factors: NDArray[np.float32] | None, offset_bits: int | None
) -> dict[str, NDArray[Any]]:
    """What a file holds of a tensor's offsets, by the names of `WIDE_PARTS` or `PACKED_PARTS`.

    Args:
        lowest: uint8 [C], first code of each window.
        factors: float32 [C], on the levels of `offset_bits`.
        offset_bits: None for offsets that have no bits of their own.
    """
    if offset_bits is None:
        given = {"lowest": lowest, "factors": factors}
        return {part: values for part, values in given.items() if values is not None}
    half = 2 ** (offset_bits - 1)
    parts = {"offset_bits": np.array(offset_bits, np.uint8)}
    if lowest is not None:
        first = lowest.min()
        above = lowest.astype(np.int16) - int(first)
        parts |= {"first": np.array(first), "windows": pack((above - half).astype(np.int8), offset_bits)}
    if factors is not None:
        codes = np.searchsorted(factor_levels(offset_bits), factors) - half
        parts["octaves"] = pack(codes.astype(np.int8), offset_bits)
    return parts


def unpacked_offsets(
    parts: Mapping[str, NDArray[Any]], channels: int
) -> tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None, int | None]:
    """The inverse of `packed_offsets`.

    Raises:
        ValueError: the parts do not go together, have another type or are not those of so many channels.
    """
    if "offset_bits" not in parts:
        if not parts.keys() <= WIDE_PARTS.keys():
            raise ValueError("packed, and their bits are missing")
        if any(part.dtype != WIDE_PARTS[kind] or part.shape != (channels,) for kind, part in parts.items()):
            raise ValueError(f"not those of {channels} channels, or of another type")
        return parts.get("lowest"), parts.get("factors"), None
    if not parts.keys() <= set(PACKED_PARTS) or ("first" in parts) != ("windows" in parts) or len(parts) == 1:
        raise ValueError(f"{', '.join(sorted(parts))} do not go together")
    if any(part.dtype != np.uint8 or part.ndim != (kind in ("windows", "octaves")) for kind, part in parts.items()):
        raise ValueError("their parts are of another type or shape")
    bits = int(parts["offset_bits"])
    if not 2 <= bits <= 8:
        raise ValueError(f"of {bits} bit, not 2 to 8")
    lowest = factors = None
    if "windows" in parts:
        starts = int(parts["first"]) + _unsigned(parts["windows"], bits, channels)
        if starts.max(initial=0) > np.iinfo(np.uint8).max:
            raise ValueError(f"a window starts at the code {starts.max()}")
        lowest = starts.astype(np.uint8)
    if "octaves" in parts:
        factors = factor_levels(bits)[_unsigned(parts["octaves"], bits, channels)]
    return lowest, factors, bits


def _unsigned(packed: NDArray[np.uint8], bits: int, channels: int) -> NDArray[np.int64]:
    return unpack(packed, bits, (channels,)).astype(np.int64) + 2 ** (bits - 1)
