"""The command that compares engines with the integer reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srquant.cli import output
from srquant.errors import UserError

if TYPE_CHECKING:
    from srquant.evaluation.flat_pictures import FlatPictures
    from srquant.evaluation.verification import Verification


def verify(
    model: Annotated[Path, typer.Argument(help="Quantised artefact.")],
    engine: Annotated[list[str] | None, typer.Option(help="Engine to verify; may be repeated.")] = None,
    exported: Annotated[Path | None, typer.Option(help="File exported from the artefact, to run instead.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture to run; a drawn one by default.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--float", help="Its float checkpoint, to hold flat pictures against.")
    ] = None,
) -> None:
    """Compare engines with the integer reference, in output levels; exit code 1 where equality is promised and broken.

    Also told is what becomes of flat pictures: white, black and a grey ramp. With --float the exit code is 1 too where
    an engine makes white darker, black brighter or the ramp fall deeper than the float network does, by more than 1
    level; a border that is off by more than 16 levels more is warned of.
    """
    from srquant.engines import ExportedFile, load
    from srquant.evaluation.verification import judge_float, verify
    from srquant.imaging import read_picture
    from srquant.quantizers import QuantizedNetwork

    pixels = None if picture is None else read_picture(picture).rgb
    opened, instead = load(model), None if exported is None else load(exported)
    if instead is not None and not isinstance(instead, ExportedFile):
        raise UserError(f"'{exported}' is not an exported file (.onnx, .xml, .tflite)")
    wanted = None
    if checkpoint is not None and isinstance(opened, QuantizedNetwork):
        wanted = judge_float(opened, load(checkpoint))
    found = verify(opened, engine or (), exported=instead, picture=pixels, progress=output.Bars())
    _show_differences(found)
    worse = _show_flat(found, wanted)
    if worse or any(one.broken for one in found):
        raise typer.Exit(1)


def _show_differences(found: Sequence[Verification]) -> None:
    rows = [
        [
            one.engine,
            str(one.largest),
            f"{100 * one.share:.4f} %",
            f"{one.psnr:.2f}",
            str(len(one.left_in_float)),
            _verdict(one),
        ]
        for one in found
    ]
    columns = ["engine", "largest difference", "values that differ", "PSNR", "in float", "contract"]
    output.table("against the integer reference, in grey levels", columns, rows)
    for one in found:
        if one.left_in_float and one.engine != "simulate":
            output.pairs([(f"{one.engine} computes in float", _few(one.left_in_float))])


def _verdict(one: Verification) -> str:
    if one.foreign and one.largest:
        return "exported from another artefact"
    return "BROKEN" if one.broken else "kept: equal" if one.promised else "not promised equal"


def _show_flat(found: Sequence[Verification], wanted: FlatPictures | None) -> bool:
    """Print what becomes of flat pictures, once for all engines that agree; returns whether the float one is better."""
    alike: dict[str, list[str]] = {}
    for one in found:
        verdict = "; ".join(one.flat.faults(wanted)) or "white, black and the ramp good within 1 level"
        alike.setdefault(f"{one.flat}: {verdict}" if one.flat.judged else str(one.flat), []).append(one.engine)
    rows = [] if wanted is None else [("flat pictures, float network", str(wanted))]
    rows += [
        (f"flat pictures, {', '.join(names) if len(alike) > 1 else 'as run'}", told) for told, names in alike.items()
    ]
    output.pairs(rows)
    faulty = any(one.flat.faults(wanted) for one in found)
    if faulty and wanted is None:
        output.warn("flat pictures change; --float CHECKPOINT tells whether they do in the float network too")
    for one in found:
        if wanted is not None and one.flat.is_worse_at_the_border(wanted):
            output.warn(
                f"{one.engine}: at the border flat pictures are off by up to {one.flat.border} levels, "
                f"those of the float network by {wanted.border}"
            )
    return faulty and wanted is not None


def _few(names: Sequence[str], most: int = 12) -> str:
    """The first names and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
