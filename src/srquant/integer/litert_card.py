"""The model card that a LiteRT file carries: what it is and how to feed it, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from srquant.networks.info import NetworkInfo


class Described(Protocol):
    """What is known of what a file computes: an integer graph, or the description of a network."""

    @property
    def info(self) -> NetworkInfo:
        """The float network that it came from."""
        ...

    @property
    def halo(self) -> int | None:
        """Receptive-field radius, None when tiles cannot be exact."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Placement, quantisation, calibration, and the converter where that is not srquant."""
        ...


def model_card(graph: Described, height: int, width: int, io: str, unequal: Sequence[str]) -> str:
    """The card of a file for pictures of height x width pixels.

    Args:
        graph: what the file computes.
        height: of the picture.
        width: of the picture.
        io: what pictures go in and come out as, uint8 or int8.
        unequal: operations that are not proven equal to the integer reference.
    """
    info, how = graph.info, graph.provenance.get("quantization", {})
    pixels = "the pixel itself, 0 black, 255 white" if io == "uint8" else "the pixel minus 128: -128 black, 127 white"
    colours = {1: "luma", 3: "red, green, blue"}.get(info.channels, f"{info.channels} channels")
    pictures = graph.provenance.get("calibration", {}).get("pictures", [])
    bits = f"weights {how['weight_bits']} bit, activations {how['activation_bits']} bit, " if how else ""
    larger = f"[1, {height * info.scale}, {width * info.scale}, {info.channels}]"
    tiles = "only whole pictures of this size" if graph.halo is None else f"tiles need {graph.halo} pixels around them"
    lines = [
        f"# {info.name} x{info.scale}, int8",
        "",
        f"Super-resolution network, quantised by {graph.provenance.get('converter', 'srquant')}.",
        "",
        f"- Input: `picture`, {io} [1, {height}, {width}, {info.channels}], rows from the top, {colours}; {pixels}.",
        f"- Output: `enlarged`, {io} {larger}, the same kind of pixels.",
        f"- Receptive field: {tiles}.",
        f"- Placement: {bits}{graph.provenance.get('placement', 'not told')}.",
        f"- Method: {graph.provenance.get('method', 'not told')}; calibration pictures: {len(pictures)}.",
        f"- Equal to the integer reference on XNNPACK: {_equality(unequal)}.",
        "- Licence of the weights: not known to srquant; ask where they come from.",
    ]
    return "\n".join(lines) + "\n"


def _equality(unequal: Sequence[str]) -> str:
    return "yes, bit for bit" if not unequal else f"not proven for {', '.join(unequal)}"
