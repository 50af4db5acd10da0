"""The commands around the clip at a network's output: what overshoots without it, and what it costs and gives."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping
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
from srquant.cli.exporting import parse_size
from srquant.config import CalibrationConfig, QuantizationConfig, build
from srquant.files import atomic_path, check_target

if TYPE_CHECKING:
    from srquant.evaluation.clip_rows import Study
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
    """Compare networks with their output clip removed and kept, by output grid and calibration pictures.

    A study that is continued with another shape, rounds or threads keeps its scores and takes its times anew.
    """
    check_choice("range method", ranges, QuantizationConfig, "ranges")
    which = build(CalibrationConfig, {"images": images, "crop": crop, "seed": seed})
    height, width = parse_size(shape)
    limit_threads(threads)

    from srquant import jobs
    from srquant.evaluation.clip_rows import Study, StudySettings

    how = QuantizationConfig.model_validate({"ranges": ranges}).ranges
    settings = StudySettings(which, how, engine, height, width, rounds, threads)
    written = jobs.clip_study(file, data, target, calibration, settings, progress=output.Bars())
    study = Study.load(target)
    assert study is not None, "a study that ended was saved"
    _print_scores(study)
    _print_times(study)
    output.pairs([("wrote", str(path)) for path in written])


def _print_scores(study: Study) -> None:
    """Every variant in a line; one that could not be quantised is explained below."""
    facts = study.facts
    rows = [["as trained", "-", "-", "-", "-", *_decibels(study.float_scores)]]
    for row in study.rows:
        one = row.variant
        ends = "-" if row.range is None else f"{row.range[0]:.0f}..{row.range[1]:.0f}"
        rows.append([one.clip, one.mode, one.pictures, str(row.used), ends, *_decibels(row.scores)])
    title = (
        f"{facts['network']} x{facts['scale']} at 8 bit, weights {facts['weights_sha256'][:16]}: mean PSNR in dB over "
        f"{facts['set']}, {facts['scale']} pixels shaved off, by the engine {facts['engine']}"
    )
    output.table(title, ["clip", "mode", "pictures", "used", "range", "RGB", "Y"], rows)
    for pictures, reason in {row.variant.pictures: row.refused for row in study.rows if row.refused}.items():
        output.pairs([(f"no score on {pictures}", reason)])


def _decibels(scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[name]:.3f}" if scores else "-" for name in ("psnr_rgb", "psnr_y")]


def _print_times(study: Study) -> None:
    """Every form in a line, every engine in a column."""
    engines = sorted({engine for times in study.times.values() for engine in times})
    rows = [
        [form, *(f"{times[engine]:.1f}" if engine in times else "-" for engine in engines)]
        for form, times in study.times.items()
    ]
    facts = study.facts
    title = f"median ms of {facts['rounds']} runs, {facts['width']}x{facts['height']} enlarged"
    output.table(title, ["form", *engines], rows)


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
