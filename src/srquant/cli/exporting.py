"""The command that writes exported files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from srquant.cli import output
from srquant.errors import UserError, unknown

_WRITERS = ("srquant", "litert-torch")


def export(
    model: Annotated[Path, typer.Argument(help="Float checkpoint or quantised artefact.")],
    target: Annotated[Path, typer.Option("-o", "--output", help="File to write: .onnx, .xml or .tflite.")],
    to: Annotated[str | None, typer.Option(help="onnx, openvino or litert; by default as the suffix tells.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of .tflite: HxW of the low-resolution pictures; by default a square tile.")
    ] = None,
    io: Annotated[str, typer.Option(help="Of .tflite: pictures as uint8 or int8.")] = "uint8",
    allow_float: Annotated[
        bool, typer.Option("--allow-float", help="Of .tflite: write what has no integer form in float32.")
    ] = False,
    via: Annotated[
        str, typer.Option(help="Of .tflite: written by srquant, or of a float network by litert-torch.")
    ] = "srquant",
    python: Annotated[
        str | None, typer.Option(help="Of --via litert-torch: the Python of an environment that has it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of --via litert-torch: folder of pictures to take the ranges from.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Of --via litert-torch: pictures to use, one crop each; by default 10.")
    ] = None,
) -> None:
    """Write a network as an ONNX file, an OpenVINO model or a LiteRT (TFLite) file."""
    size = None if shape is None else parse_size(shape)
    if io not in ("uint8", "int8"):
        raise unknown("kind of pictures", io, ("uint8", "int8"))
    if via not in _WRITERS:
        raise unknown("writer", via, _WRITERS)
    pictures = "int8" if io == "int8" else "uint8"
    from srquant import jobs

    form = jobs.check_format(target, to)
    if via == "srquant":
        if (python, data, images) != (None, None, None):
            raise UserError("--python, --data and --images go with --via litert-torch only")
        jobs.export(model, target, form, shape=size, io=pictures, allow_float=allow_float)
    else:
        if form != "litert":
            raise UserError(f"--via litert-torch writes LiteRT files (.tflite), not '{form}'")
        if python is None or data is None or size is None:
            raise UserError("--via litert-torch needs --python PROGRAM, --data PICTURES and --shape HxW")
        jobs.export_via_litert_torch(
            model,
            target,
            python,
            data,
            size,
            images=10 if images is None else images,
            io=pictures,
            allow_float=allow_float,
            progress=output.Bars(),
        )
    from srquant.engines.exported import files_of

    written = files_of(target)
    size_of_all = sum(file.stat().st_size for file in written)
    told = [("wrote", f"{' and '.join(map(str, written))} ({size_of_all / 1000:.0f} kB)")]
    if form == "litert":
        told += _told_by(target)
    output.pairs(told)


def _told_by(target: Path) -> list[tuple[str, str]]:
    """What a LiteRT file says about its pictures and its equality with the reference."""
    from srquant.engines.exported import read_exported
    from srquant.evaluation.description import litert_facts

    return litert_facts(read_exported(target).description)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of a low-resolution picture, from text such as 360x640.

    Raises:
        UserError: it is none, or a side is 0.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise UserError(f"shape '{text}': expected HEIGHTxWIDTH of the low-resolution picture, such as 360x640")
    height, width = int(found[1]), int(found[2])
    if not (height and width):
        raise UserError(f"shape '{text}': neither side may be 0")
    return height, width
