"""An integer graph as a LiteRT (TFLite) file: full integer, int8 inside, for pictures of one size.

Pictures go in and come out as [1, H, W, C], uint8 or int8. The file carries srquant's description of it and a model
card.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from srquant.errors import UserError, unknown
from srquant.integer import graph as ops
from srquant.integer.graph import IntegerGraph
from srquant.integer.litert_card import Described, model_card
from srquant.integer.litert_kernels import refusal, unequal
from srquant.integer.litert_operations import TRANSLATIONS
from srquant.integer.litert_rewrites import prepare
from srquant.integer.litert_writer import PictureKind, Writer
from srquant.networks.onnx import METADATA_KEY

CARD_KEY = "MODEL_CARD"
"""Name under which a file carries its model card."""
_FEW = 6
_LEAST_SIDE, _HALOS, _STEP = 128, 6, 32
"""Of default shapes: the least side, how many halos wide they are, and what they are multiples of."""


def to_litert(
    graph: IntegerGraph, height: int, width: int, *, io: PictureKind = "uint8", allow_float: bool = False
) -> bytes:
    """The file of a graph for pictures of height x width pixels; the same graph gives the same bytes.

    Args:
        graph: what to write.
        height: of the picture.
        width: of the picture.
        io: what pictures go in and come out as; int8 is the pixel minus 128.
        allow_float: write operations without an integer form in float32 instead of refusing them.

    Raises:
        UserError: the package is missing, the graph has gates, operations in float or scales that XNNPACK does
            not take, or the network does not take this size.
    """
    if io not in ("uint8", "int8"):
        raise unknown("kind of pictures", io, ("uint8", "int8"))
    check_exportable(graph, allow_float=allow_float)
    check_shape(graph.info.size_multiple, height, width)
    prepared = prepare(graph)
    _check_ratios(prepared)
    writer = Writer(prepared, height, width)
    picture = writer.picture(io)
    for operation in writer.graph.operations:
        TRANSLATIONS[type(operation)](writer, operation)
    enlarged, different = writer.enlarged(io), unequal(writer.graph)
    metadata = file_texts(graph, height, width, io, different)
    return writer.file.finish({"picture": picture}, {"enlarged": enlarged}, file_name(graph), metadata)


def file_texts(told: Described, height: int, width: int, io: PictureKind, different: Sequence[str]) -> dict[str, str]:
    """The texts that a file carries: srquant's description of it and the model card.

    Args:
        told: what the file computes.
        height: of the picture.
        width: of the picture.
        io: what pictures go in and come out as.
        different: operations that are not proven equal to the integer reference.
    """
    plain = {"info": asdict(told.info), "halo": told.halo, "provenance": dict(told.provenance)}
    description = {**plain, "litert": {"shape": [height, width], "pictures": io, "unequal": list(different)}}
    return {
        METADATA_KEY: json.dumps(description, sort_keys=True),
        CARD_KEY: model_card(told, height, width, io, different),
    }


def file_name(told: Described) -> str:
    """What a file says it is."""
    return f"srquant {told.info.name} x{told.info.scale}"


def check_exportable(graph: IntegerGraph, *, allow_float: bool = False) -> None:
    """Refuse a graph that has no integer form.

    Raises:
        UserError: it has gates or, unless these are allowed, operations in float.
    """
    if graph.gates():
        raise UserError(
            f"'{graph.info.name}' has gates that choose scales picture by picture, which a LiteRT file cannot hold; "
            "export it to onnx"
        )
    real = [f"{o.output} ({type(o).__name__})" for o in graph.operations if isinstance(o, ops.FLOAT_OPERATIONS)]
    if real and not allow_float:
        more = f" and {len(real) - _FEW} more" if len(real) > _FEW else ""
        raise UserError(
            f"{len(real)} operations have no integer form: {', '.join(real[:_FEW])}{more}; "
            "--allow-float (allow_float in Python) writes them in float32"
        )


def _check_ratios(graph: IntegerGraph) -> None:
    for operation in graph.operations:
        reason = refusal(graph, operation)
        if reason is not None:
            raise UserError(f"{reason}; quantise the network on other pictures")


def check_shape(multiple: int, height: int, width: int) -> None:
    """Refuse a size of pictures that a network does not take.

    Raises:
        UserError: a side is not above 0, or no multiple of `multiple`.
    """
    if min(height, width) < 1 or height % multiple or width % multiple:
        rule = "1 or more" if multiple == 1 else f"multiples of {multiple}"
        raise UserError(f"the shape is {height}x{width}; allowed sides: {rule}")


def default_shape(graph: IntegerGraph) -> tuple[int, int]:
    """Height and width of a tile that suits a network: nearly half of it is kept when tiles are put together.

    Raises:
        UserError: the network looks at the whole picture, so that its size has to be told.
    """
    if graph.halo is None:
        raise UserError(
            f"'{graph.info.name}' looks at the whole picture: tell the size of the pictures with --shape HxW"
        )
    side = max(_LEAST_SIDE, -(-_HALOS * graph.halo // _STEP) * _STEP)
    side += -side % graph.info.size_multiple
    return side, side
