"""The commands around the clip at a network's output: what overshoots without it, and what it costs and gives."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srquant.cli import output
from srquant.cli.commands import (
    CropOption,
    GainOption,
    ImagesOption,
    LowResolutionOption,
    ModeOption,
    NoiseOption,
    OffsetOption,
    SeedOption,
    ThreadsOption,
    check_choice,
    limit_threads,
)
from srquant.config import CalibrationConfig, QuantizationConfig, build
from srquant.errors import UserError
from srquant.files import atomic_path, check_target

if TYPE_CHECKING:
    from srquant.methods.overshoot import OvershootReport

_MOST_SHOWN = 12


def overshoot(
    file: Annotated[Path, typer.Argument(help="Float checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of pictures to calibrate on.")],
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")] = None,
    images: ImagesOption = 100,
    crop: CropOption = 96,
    seed: SeedOption = 0,
    low_resolution: LowResolutionOption = False,
    mode: ModeOption = "range",
    gain: GainOption = 1.0,
    offset: OffsetOption = 0.0,
    noise: NoiseOption = 0.0,
) -> None:
    """Tell how far outputs overshoot without the clip, how ranges grow with pictures, and what to do about it."""
    check_choice("mode", mode, CalibrationConfig, "mode")
    if json is not None:
        check_target(json)
    calibration: dict[str, Any] = {
        "images": images,
        "crop": crop,
        "seed": seed,
        "low_resolution": low_resolution,
        "mode": mode,
        "gain": gain,
        "offset": offset,
        "noise": noise,
    }
    which = build(CalibrationConfig, calibration)

    from srquant import jobs

    report = jobs.overshoot(file, data, which, progress=output.Bars())
    _print_pictures(report)
    _print_tensors(report)
    output.pairs([("advice", line) for line in report.advice])
    if json is not None:
        with atomic_path(json) as temporary:
            temporary.write_text(json_text.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")


def clip_study(
    file: Annotated[Path, typer.Argument(help="Float checkpoint.")],
    data: Annotated[Path, typer.Option(help="Benchmark set to score on: a folder with HR/, or of pictures.")],
    target: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; a study in it is continued.")],
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of pictures to calibrate on; by default those of --data.")
    ] = None,
    ranges: Annotated[str, typer.Option(help="minmax, percentile or mse.")] = "minmax",
    images: ImagesOption = 100,
    crop: CropOption = 96,
    seed: SeedOption = 0,
    engine: Annotated[str, typer.Option(help="What the scores are computed with.")] = "torch",
    shape: Annotated[str, typer.Option(help="Low-resolution height and width to time.")] = "180x320",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every engine; the median counts.")] = 9,
    threads: ThreadsOption = None,
) -> None:
    """Compare networks with their output clip removed and kept, by output grid and calibration pictures."""
    check_choice("range method", ranges, QuantizationConfig, "ranges")
    which = build(CalibrationConfig, {"images": images, "crop": crop, "seed": seed})
    height, width = _shape(shape)
    limit_threads(threads)

    from srquant import jobs
    from srquant.evaluation.clip_rows import StudySettings

    how = QuantizationConfig.model_validate({"ranges": ranges}).ranges
    settings = StudySettings(which, how, engine, height, width, rounds, threads)
    written = jobs.clip_study(file, data, target, calibration, settings, progress=output.Bars())
    output.pairs([("wrote", str(path)) for path in written])


def _shape(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"shape '{text}': allowed is HEIGHTxWIDTH in low-resolution pixels, such as 180x320")
    return int(height), int(width)


def _print_pictures(report: OvershootReport) -> None:
    """The pictures that overshoot most, by the share of their pixels."""
    worst = sorted(report.pictures, key=lambda p: -(p.output.below + p.output.above))
    rows = [
        [
            picture.name,
            f"{picture.output.lowest:.1f}",
            f"{picture.output.highest:.1f}",
            f"{100 * picture.output.below:.3f} %",
            f"{100 * picture.output.above:.3f} %",
        ]
        for picture in worst[:_MOST_SHOWN]
    ]
    title = f"outputs without the clip, in grey levels: the worst {len(rows)} of {len(worst)} pictures"
    output.table(title, ["picture", "lowest", "highest", "below 0", "above 255"], rows)


def _print_tensors(report: OvershootReport) -> None:
    measured = sorted(report.tensors[0].ranges)
    counts = [count for count in measured if count in (1, 5, 20) or count in measured[-2:]]
    rows = []
    for tensor in report.tensors:
        name = f"{tensor.name} (output)" if tensor.name == report.output else tensor.name
        ranges = [f"{lower:.4g}..{upper:.4g}" for lower, upper in (tensor.ranges[count] for count in counts)]
        rows.append([name, *ranges, f"{tensor.decided_by} ({100 * tensor.share:.0f} %)"])
    columns = ["tensor", *(f"{count} picture{'s' * (count > 1)}" for count in counts), "decided most by"]
    output.table("range of every tensor, by extremes, as pictures are added", columns, rows)
