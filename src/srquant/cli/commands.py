"""The commands; each parses, calls one job and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import BaseModel

from srquant.cli import output
from srquant.config import CalibrationConfig, QuantizationConfig, build
from srquant.errors import UserError, unknown
from srquant.files import check_target

if TYPE_CHECKING:
    from srquant.upscaling import Tile

ModelArgument = Annotated[Path, typer.Argument(help="Float checkpoint, quantised artefact or exported file.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Processor threads; all by default.")]
EngineOption = Annotated[
    str, typer.Option(help="auto, simulate, reference, torch, onnxruntime, litert or openvino.", show_default=True)
]


def networks() -> None:
    """List the networks that srquant knows."""
    from srquant.networks import NETWORKS

    rows = []
    for name, network in NETWORKS.items():
        module = __import__(network.__module__, fromlist=["__doc__"])
        scales = ", ".join(f"x{scale}" for scale in network.config_type.scales)
        rows.append([name, scales, (module.__doc__ or "").splitlines()[0]])
    output.table("", ["network", "scales", "what it is"], rows)


def info(file: ModelArgument) -> None:
    """Tell what a file is: network, scale, size, cost; for a quantised one also its bits."""
    from srquant.evaluation.description import describe_model
    from srquant.jobs import load

    output.pairs([("file", str(file)), *describe_model(load(file), file)])


ImagesOption = Annotated[int, typer.Option(help="Pictures to use, one crop each.")]
CropOption = Annotated[int, typer.Option(help="Side of a crop in low-resolution pixels.")]
SeedOption = Annotated[int, typer.Option(help="Chooses pictures and crops.")]
LowResolutionOption = Annotated[
    bool, typer.Option("--low-resolution", help="The pictures are network inputs; do not downscale them.")
]
ModeOption = Annotated[str, typer.Option(help="Crops as they are (range), without overshoot (select), tamed (tame).")]
GainOption = Annotated[float, typer.Option(help="Factor of the crops' pixel values.")]
OffsetOption = Annotated[float, typer.Option(help="Added to the crops' pixel values.")]
NoiseOption = Annotated[float, typer.Option(help="Share of uniform noise in the crops, 0 to 1.")]


def quantize(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Float checkpoint.")],
    target: Annotated[Path, typer.Option("-o", "--output", help="Artefact to write, .safetensors.")],
    data: Annotated[Path | None, typer.Option(help="Folder of pictures to calibrate on.")] = None,
    ranges_from: Annotated[
        Path | None, typer.Option(help="Calibration file to take ranges and settings from; --data rounds the weights.")
    ] = None,
    save_ranges: Annotated[Path | None, typer.Option(help="Calibration file to write, .json.")] = None,
    ranges: Annotated[str, typer.Option(help="minmax, percentile or mse.")] = "percentile",
    percentile: Annotated[float, typer.Option(help="Of the values kept by --ranges percentile.")] = 99.997,
    weight_bits: Annotated[int, typer.Option(help="2 to 8.")] = 8,
    activation_bits: Annotated[int, typer.Option(help="2 to 8.")] = 8,
    placement: Annotated[str, typer.Option(help="Which tensors carry these bits: strict or full.")] = "strict",
    equalize: Annotated[
        bool, typer.Option("--equalize/--no-equalize", help="Equalise channels where that lowers the error.")
    ] = True,
    weight_rounding: Annotated[
        str, typer.Option(help="compensated: errors of weights cancel on the pictures; or nearest.")
    ] = "compensated",
    exact: Annotated[bool, typer.Option("--exact", help="Power-of-two scales: every engine bit for bit.")] = False,
    clip: Annotated[str, typer.Option(help="A clip at the output: fold it into the grid, or keep it.")] = "fold",
    output_range: Annotated[
        str, typer.Option(help="Grid of the output: picture, or calibrated, which costs one step more.")
    ] = "picture",
    images: ImagesOption = 100,
    crop: CropOption = 96,
    seed: SeedOption = 0,
    low_resolution: LowResolutionOption = False,
    mode: ModeOption = "range",
    gain: GainOption = 1.0,
    offset: OffsetOption = 0.0,
    noise: NoiseOption = 0.0,
) -> None:
    """Quantise a float network without training."""
    if target.suffix != ".safetensors":
        raise UserError(f"an artefact ends in '.safetensors', not '{target.suffix}': '{target}'")
    check_target(target)
    if data is None and ranges_from is None:
        raise UserError("ranges come from pictures (--data) or from a calibration file (--ranges-from): give one")
    check_choice("range method", ranges, QuantizationConfig, "ranges")
    check_choice("weight rounding", weight_rounding, QuantizationConfig, "weight_rounding")
    check_choice("clip", clip, QuantizationConfig, "clip")
    check_choice("output range", output_range, QuantizationConfig, "output_range")
    check_choice("mode", mode, CalibrationConfig, "mode")
    settings: dict[str, Any] = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "placement": placement,
        "ranges": ranges,
        "percentile": percentile,
        "equalize": equalize,
        "weight_rounding": weight_rounding,
        "exact": exact,
        "clip": clip,
        "output_range": output_range,
    }
    crops: dict[str, Any] = {
        "images": images,
        "crop": crop,
        "seed": seed,
        "low_resolution": low_resolution,
        "mode": mode,
        "gain": gain,
        "offset": offset,
        "noise": noise,
    }
    how, which = build(QuantizationConfig, settings), build(CalibrationConfig, crops)
    if ranges_from is not None:
        for name in (*settings, *crops):
            if _is_given(context, name):
                option = name.replace("_", "-")
                raise UserError(f"--{option} does not go with --ranges-from: the file brings its settings, change it")

    from srquant import jobs
    from srquant.evaluation.description import describe_model
    from srquant.files import check_apart
    from srquant.quantizers import save_artefact

    check_apart(target, file, ranges_from, save_ranges)
    if save_ranges is not None and save_ranges.suffix != ".json":
        raise UserError(f"cannot write ranges to '{save_ranges}': a calibration file ends in .json")
    if ranges_from is not None:
        quantized = jobs.quantize(file, data, ranges_from=ranges_from, save_ranges=save_ranges, progress=output.Bars())
    else:
        quantized = jobs.quantize(file, data, how, which, save_ranges=save_ranges, progress=output.Bars())
    save_artefact(quantized, target)
    wrote = [("wrote", str(target))] + ([] if save_ranges is None else [("ranges", str(save_ranges))])
    output.pairs([*wrote, *describe_model(quantized, target)])


def check_choice(kind: str, given: str, model: type[BaseModel], field: str) -> None:
    """Refuse a word that a setting does not have; the nearest one is named."""
    allowed = get_args(model.model_fields[field].annotation)
    if given not in allowed:
        raise unknown(kind, given, allowed)


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was written on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def evaluate(
    model: ModelArgument,
    data: Annotated[list[Path], typer.Option(help="Benchmark set: a folder with HR/, or of pictures; repeatable.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Further benchmark sets.", show_default=False)] = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Print every picture's score.")] = False,
) -> None:
    """Score a model on benchmark sets."""
    from srquant import jobs

    limit_threads(threads)
    if json is not None:
        check_target(json)
    result = jobs.evaluate(model, [*data, *(more or [])], engine, threads=threads, progress=output.Bars())
    output.pairs(
        [
            ("model", f"{result.facts.network} x{result.facts.scale}, sha256 {(result.facts.sha256 or '')[:16]}"),
            ("engine", result.engine),
            ("placement", result.facts.placement),
            ("protocol", result.protocol),
        ]
    )
    rows = []
    for name, score in result.datasets.items():
        rows.append([name, f"{score.psnr:.3f}", f"{score.ssim:.4f}", str(len(score.images))])
        rows += [[f"  {i.name}", f"{i.psnr:.3f}", f"{i.ssim:.4f}", ""] for i in score.images if images]
    output.table("", ["set", "PSNR", "SSIM", "pictures"], rows)
    if json is not None:
        result.save(json)


def upscale(
    source: Annotated[Path, typer.Argument(help="Picture or folder of pictures.")],
    target: Annotated[Path, typer.Option("-o", "--output", help="Picture to write, or a folder.")],
    model: Annotated[Path, typer.Option("-m", "--model", help="Any model.")],
    engine: EngineOption = "auto",
    tile: Annotated[str, typer.Option(help="auto, whole, or a tile's side in low-resolution pixels.")] = "auto",
    pattern: Annotated[str, typer.Option(help="Names of files written into a folder.")] = "{name}_x{scale}{suffix}",
    suffix: Annotated[str | None, typer.Option(help="Format of files written into a folder, such as .png.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    to_8bit: Annotated[bool, typer.Option("--to-8bit", help="Accept deeper pictures and round them.")] = False,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG files.")] = 95,
    strip_metadata: Annotated[bool, typer.Option("--strip-metadata", help="Leave out EXIF and ICC.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Enlarge a picture, or every picture of a folder."""
    from srquant.engines import load, open_engine
    from srquant.upscaling import upscale_path

    limit_threads(threads)
    written = upscale_path(
        open_engine(load(model), engine, threads=threads),
        source,
        target,
        tile=_tile(tile),
        pattern=pattern,
        suffix=suffix,
        overwrite=overwrite,
        reduce_depth=to_8bit,
        quality=quality,
        keep_metadata=not strip_metadata,
        progress=output.Bars(),
    )
    output.pairs([("wrote", str(path)) for path in written] or [("wrote", "nothing: every output exists already")])


def limit_threads(threads: int | None) -> None:
    """PyTorch's threads belong to the process; the other engines are told theirs."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _tile(text: str) -> Tile:
    """ "auto", None for the whole picture, or a number."""
    if text == "whole":
        return None
    if text != "auto" and not text.lstrip("-").isdigit():
        raise UserError(f"tile '{text}': allowed are auto, whole, or a number of pixels")
    return "auto" if text == "auto" else int(text)
