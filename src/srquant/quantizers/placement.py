"""Placement: which tensor carries how many bits. Every score is printed with it.

A convolution belongs to the `head` when it reads the picture, to the `tail` when nothing but pixel shuffles,
activations and additions lies between it and a pixel shuffle, or when it comes after one; all others are `body`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from srquant.errors import unknown

Stage = Literal["head", "body", "tail"]


@dataclass(frozen=True)
class Placement:
    """A rule that gives every convolution and every tensor its bits.

    Attributes:
        name: the word to ask for it by.
        meaning: one line for people.
        low_bit_stages: stages whose convolutions get the requested bits; the others get 8.
        low_bit_stream: whether tensors that are added, multiplied, concatenated or read by an 8-bit convolution
            get the requested bits too; if not, they have 8 bits and a low-bit convolution rounds its own input.
    """

    name: str
    meaning: str
    low_bit_stages: frozenset[Stage]
    low_bit_stream: bool

    def bits(self, stage: Stage, requested: int) -> int:
        """Bits of the weights and the input of a convolution of this stage."""
        return requested if stage in self.low_bit_stages else 8


PLACEMENTS: Mapping[str, Placement] = {
    "strict": Placement(
        "strict",
        "body convolutions and their inputs at the requested bits; head, tail and residual stream at 8 bit",
        frozenset({"body"}),
        low_bit_stream=False,
    ),
    "full": Placement(
        "full",
        "every convolution and every tensor at the requested bits; only the picture in and out at 8 bit",
        frozenset({"head", "body", "tail"}),
        low_bit_stream=True,
    ),
}


def get_placement(name: str) -> Placement:
    """The placement of that name.

    Raises:
        UserError: there is none; the nearest name is told.
    """
    if name not in PLACEMENTS:
        raise unknown("placement", name, PLACEMENTS)
    return PLACEMENTS[name]


@dataclass(frozen=True)
class PlacementReport:
    """What a placement came to on one network; its `str` is printed with every score.

    Attributes:
        placement: its name.
        weight_bits: of every convolution.
        activation_bits: of every tensor.
        left_in_float: the kind of every layer that computes on real numbers between two grids.
    """

    placement: str
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]
    left_in_float: Mapping[str, str]

    def __str__(self) -> str:
        kinds = Counter(self.left_in_float.values())
        float_part = "; in float between 8-bit tensors: " if kinds else ""
        float_part += ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        return (
            f"{self.placement}: {_counts(self.weight_bits, 'convolutions')}, "
            f"{_counts(self.activation_bits, 'tensors')}{float_part}"
        )


def _counts(bits: Mapping[str, int], what: str) -> str:
    kinds = sorted(set(bits.values()))
    return " + ".join(f"{sum(b == kind for b in bits.values())} {what} at {kind} bit" for kind in kinds)
