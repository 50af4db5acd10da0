"""Placement: which tensor carries how many bits. Every score is printed with it.

A convolution belongs to the `head` when it reads the picture, to the `tail` when nothing but pixel shuffles,
activations and additions lies between it and a pixel shuffle, or when it comes after one; all others are `body`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from srquant.errors import UserError, unknown

Stage = Literal["head", "body", "tail"]


@dataclass(frozen=True)
class Layout:
    """Where a published method rounds inside one family of networks, by shell patterns of convolution names.

    Attributes:
        low_bit: convolutions with the requested bits.
        block_inputs: convolutions that open a residual block: what they read is rounded once, and all of the
            block, its skip connection too, reads the rounded tensor.
        raw_inputs: of the low-bit convolutions, those that read their input as the stream holds it.
        outputs: convolutions whose output is rounded to the requested bits before it is added.
    """

    low_bit: tuple[str, ...]
    block_inputs: tuple[str, ...] = ()
    raw_inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """A rule that gives every convolution and every tensor its bits.

    Attributes:
        name: the word to ask for it by.
        meaning: one line for people.
        low_bit_stages: stages whose convolutions get the requested bits; the others get 8.
        low_bit_stream: whether tensors that are added, multiplied, concatenated or read by an 8-bit convolution
            get the requested bits too; if not, they have 8 bits and a low-bit convolution rounds its own input.
        layouts: for placements that are told network by network, the layout of each; stages do not count then.
    """

    name: str
    meaning: str
    low_bit_stages: frozenset[Stage] = frozenset()
    low_bit_stream: bool = False
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def layout(self, network: str) -> Layout | None:
        """The layout for a network; None where the stages decide.

        Raises:
            UserError: this placement is told network by network, and not for this one.
        """
        if self.layouts and network not in self.layouts:
            raise UserError(
                f"the placement '{self.name}' is defined for {', '.join(self.layouts)}, not for '{network}' (strict is)"
            )
        return self.layouts.get(network)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a convolution's name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


_EDSR = Layout(low_bit=("body.*.body.*",), block_inputs=("body.*.body.0",), outputs=("body.*.body.2",))
_RDN = Layout(low_bit=("RDBs.*", "GFF.*"), block_inputs=("RDBs.*.convs.0.conv.0",))
_SRRESNET = Layout(low_bit=("body.*.conv?",))

PLACEMENTS: Mapping[str, Placement] = {
    "strict": Placement(
        "strict",
        "body convolutions and their inputs at the requested bits; head, tail and residual stream at 8 bit",
        frozenset({"body"}),
    ),
    "full": Placement(
        "full",
        "every convolution and every tensor at the requested bits; only the picture in and out at 8 bit",
        frozenset({"head", "body", "tail"}),
        low_bit_stream=True,
    ),
    "ddtb": Placement(
        "ddtb",
        "DDTB's: the residual blocks and their skips at the requested bits; the rest at 8 bit",
        layouts={"edsr": _EDSR, "rdn": _RDN, "srresnet": _SRRESNET},
    ),
    "ddtb-official": Placement(
        "ddtb-official",
        "DDTB's as published: like ddtb, but EDSR's first convolution of a block and RDN's last read unrounded",
        layouts={
            "edsr": replace(_EDSR, raw_inputs=("body.*.body.0",)),
            "rdn": replace(_RDN, raw_inputs=("GFF.1",)),
            "srresnet": _SRRESNET,
        },
    ),
    "daq": Placement(
        "daq",
        "DAQ's: weights and inputs of the convolutions inside the residual blocks; skips and the rest at 8 bit",
        layouts={
            "edsr": Layout(low_bit=("body.*.body.*",)),
            "rdn": Layout(low_bit=("RDBs.*.convs.*",)),
            "srresnet": _SRRESNET,
        },
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
        rest_in_float: everything outside the low-bit layers stays float32: a simulation that cannot be deployed.
    """

    placement: str
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]
    left_in_float: Mapping[str, str]
    rest_in_float: bool = False

    def __str__(self) -> str:
        kinds = Counter(self.left_in_float.values())
        float_part = "; in float between 8-bit tensors: " if kinds else ""
        float_part += ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        rest = ", everything else in float32 (simulation only)" if self.rest_in_float else ""
        return (
            f"{self.placement}: {_counts(self.weight_bits, 'convolutions')}, "
            f"{_counts(self.activation_bits, 'tensors')}{rest}{float_part}"
        )


def _counts(bits: Mapping[str, int], what: str) -> str:
    kinds = sorted(set(bits.values()))
    return " + ".join(f"{sum(b == kind for b in bits.values())} {what} at {kind} bit" for kind in kinds)
