"""The jobs of the command line as functions: quantize, overshoot, clip_study, export, evaluate, upscale.

Every job takes a model as a path or as what `srquant.load` returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from srquant.config import CalibrationConfig, QuantizationConfig, build
from srquant.engines import Model, litert_torch, load, open_engine
from srquant.engines.exported import ExportedFile, files_of
from srquant.engines.litert import check_loads
from srquant.engines.openvino import save_openvino
from srquant.errors import UserError, unknown
from srquant.evaluation.clip_rows import StudySettings
from srquant.evaluation.clip_study import run_clip_study
from srquant.evaluation.scores import Evaluation, evaluate_engine, facts
from srquant.files import atomic_path, check_target, sha256
from srquant.imaging.crops import Crop, calibration_crops
from srquant.integer import lower
from srquant.integer.litert import default_shape, to_litert
from srquant.integer.litert_writer import PictureKind
from srquant.integer.onnx import describe_graph, to_onnx
from srquant.methods.cfqp import FEWEST, representative
from srquant.methods.overshoot import OvershootReport, overshoot_report
from srquant.networks.info import SRNetwork
from srquant.networks.onnx import describe_network, float_onnx, write_onnx
from srquant.progress import Progress, Silent
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.calibration import compensate, quantize_network
from srquant.quantizers.calibration_file import (
    calibration_file,
    quantize_with,
    read_calibration_file,
    weights_sha256,
)
from srquant.upscaling import Tile, upscale_path

ModelOrPath = Model | Path | str
ExportFormat = Literal["onnx", "openvino", "litert"]

EXPORT_SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}
"""The formats of exported files and how these end."""


def quantize(
    model: ModelOrPath,
    data: Path | str | Sequence[Path | str] | None = None,
    quantization: QuantizationConfig | None = None,
    calibration: CalibrationConfig | None = None,
    *,
    save_ranges: Path | str | None = None,
    ranges_from: Path | str | None = None,
    progress: Progress | None = None,
) -> QuantizedNetwork:
    """Post-training quantisation of a float network.

    Args:
        model: a float network or its checkpoint.
        data: folder of pictures to take the activation ranges from and to round the weights on; 5 to 20 different
            ones do. Of several folders an equal share from each.
        quantization: bits, placement, ranges; 8 bit by default.
        calibration: how many pictures and which.
        save_ranges: calibration file to write; see `srquant.quantizers.calibration_file`.
        ranges_from: calibration file to take ranges and settings from; the pictures then only round the weights.
        progress: told of every crop.

    Raises:
        UserError: the model is not a float network, or the pictures or the calibration file are missing or cannot be
            used.
    """
    network, progress = _float_network(model), progress or Silent()
    folders = [] if data is None else _folders(data)
    if not folders and ranges_from is None:
        raise UserError("ranges come from a folder of pictures or from a calibration file: give one")
    if save_ranges is not None:
        check_target(Path(save_ranges))
    digest = weights_sha256(network)
    if ranges_from is not None:
        if quantization is not None or calibration is not None:
            raise UserError("a calibration file brings its own settings: change them there")
        file = read_calibration_file(Path(ranges_from))
        quantized = quantize_with(network, file)
        if file.weights_sha256 != digest:
            progress.warn(f"the ranges of '{ranges_from}' were taken from other weights of this network")
        _round_again(network, quantized, folders, progress)
    else:
        quantized = _calibrated(network, folders, quantization, calibration or CalibrationConfig(), progress)
        file = calibration_file(quantized, digest)
    if save_ranges is not None:
        file.save(Path(save_ranges))
    return quantized


def _calibrated(
    network: SRNetwork,
    folders: Sequence[Path],
    quantization: QuantizationConfig | None,
    calibration: CalibrationConfig,
    progress: Progress,
) -> QuantizedNetwork:
    """A network quantised on pictures, which it records."""
    crops = _crops(network, folders, calibration)
    pictures, records = representative(network, crops, calibration, progress)
    quantized = quantize_network(network, quantization or QuantizationConfig(), pictures, progress)
    quantized.calibration = {**calibration.model_dump(), "pictures": records}
    if len(pictures) < FEWEST:
        progress.warn(
            f"ranges from {len(pictures)} of {len(crops)} pictures: with fewer than {FEWEST} they may be small"
        )
    return quantized


def _crops(network: SRNetwork, folders: Sequence[Path], calibration: CalibrationConfig) -> list[Crop]:
    """Patches of the pictures of several folders, an equal share from each."""
    share, info = calibration.model_copy(update={"images": max(calibration.images // len(folders), 1)}), network.info
    return [crop for folder in folders for crop in calibration_crops(folder, info.scale, share, info.channels)]


def _round_again(network: SRNetwork, quantized: QuantizedNetwork, folders: Sequence[Path], progress: Progress) -> None:
    """Round the weights of a network with ranges from a file on the pictures that the file tells."""
    on_pictures = quantized.quantization.weight_rounding == "compensated"
    if on_pictures != bool(folders):
        raise UserError(
            "the calibration file has weights rounded on its pictures: give their folder too (--data), or change its "
            "quantization.weight_rounding to 'nearest'"
            if on_pictures
            else "the calibration file rounds every weight to the nearest code: it needs no pictures"
        )
    if not folders:
        return
    told = quantized.calibration
    config = build(CalibrationConfig, {key: told[key] for key in CalibrationConfig.model_fields if key in told})
    crops = _crops(network, folders, config)
    pictures, records = representative(network, crops, config, progress)
    if records != told.get("pictures"):
        places = "', '".join(map(str, folders))
        progress.warn(f"the pictures in '{places}' are not those that the ranges were taken from")
    compensate(quantized, pictures, progress)


def overshoot(
    model: ModelOrPath,
    data: Path | str,
    calibration: CalibrationConfig | None = None,
    *,
    progress: Progress | None = None,
) -> OvershootReport:
    """What calibration pictures do to the unclipped output of a float network, and to the range of every tensor.

    Args:
        model: a float network or its checkpoint.
        data: folder of pictures.
        calibration: how many pictures, which, and what becomes of them.
        progress: told of every picture.

    Raises:
        UserError: the model is not a float network, or the pictures cannot be used.
    """
    network, calibration = _float_network(model), calibration or CalibrationConfig()
    crops = _crops(network, [Path(data)], calibration)
    pictures, records = representative(network, crops, calibration, progress)
    return overshoot_report(network, [str(record["file"]) for record in records], pictures, progress or Silent())


def clip_study(
    model: ModelOrPath,
    data: Path | str,
    folder: Path | str,
    pictures: Path | str | None = None,
    settings: StudySettings | None = None,
    *,
    progress: Progress | None = None,
) -> list[Path]:
    """What a float network's output clip costs and gives, with what grid and which calibration pictures.

    Args:
        model: a float network or its checkpoint.
        data: benchmark set to score on.
        folder: what to write into; made where it is missing, a study in it is continued.
        pictures: folder of calibration pictures; by default those of `data`, which may flatter the scores.
        settings: the same for all rows.
        progress: told of every row.

    Returns:
        The written files: the study, its tables and plot, and a sheet of the patches that lost most.

    Raises:
        UserError: see `srquant.evaluation.clip_study.run_clip_study`.
    """
    network, settings = _float_network(model), settings or StudySettings()
    return run_clip_study(network, Path(data), Path(pictures or data), Path(folder), settings, progress or Silent())


def export(
    model: ModelOrPath,
    path: Path | str,
    to: ExportFormat | None = None,
    *,
    shape: tuple[int, int] | None = None,
    io: PictureKind = "uint8",
    allow_float: bool = False,
) -> None:
    """Write a network as an ONNX file (.onnx), an OpenVINO model (.xml, .bin beside it) or a LiteRT file (.tflite).

    Args:
        model: a float or quantised network; a quantised one for LiteRT.
        path: the file.
        to: its format; by default the one that its suffix tells.
        shape: of LiteRT files: height and width of the pictures, by default a square tile that suits the network.
        io: of LiteRT files: what pictures go in and come out as, uint8 or int8 (128 less).
        allow_float: of LiteRT files: write operations without an integer form in float32 instead of refusing them.

    Raises:
        UserError: unknown format, a suffix or an option that does not fit, or a model that cannot be written so.
    """
    opened, path = _opened(model), Path(path)
    to = check_format(path, to)
    if isinstance(opened, ExportedFile):
        raise UserError(f"'{opened.path}' is an exported file already; export the network or the artefact it came from")
    if to == "litert":
        _export_litert(opened, path, shape, io, allow_float=allow_float)
        return
    if shape is not None or io != "uint8" or allow_float:
        raise UserError(f"shape, io and allow_float go with litert (.tflite) only, not with '{to}'")
    check_target(path)
    if isinstance(opened, QuantizedNetwork):
        graph = lower(opened)
        content, description = to_onnx(graph), describe_graph(graph)
    else:
        content, description = float_onnx(opened), describe_network(opened)
    if to == "openvino":
        save_openvino(content.SerializeToString(deterministic=True), description, path)
    else:
        write_onnx(content, path)


def _export_litert(
    model: Model, path: Path, shape: tuple[int, int] | None, io: PictureKind, *, allow_float: bool
) -> None:
    if not isinstance(model, QuantizedNetwork):
        raise UserError("a LiteRT file holds a quantised network, this is a float one: quantise it, or export to onnx")
    check_target(path)
    graph = lower(model)
    content = to_litert(graph, *(shape or default_shape(graph)), io=io, allow_float=allow_float)
    check_loads(content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def export_via_litert_torch(
    model: ModelOrPath,
    path: Path | str,
    python: Path | str,
    data: Path | str,
    shape: tuple[int, int],
    *,
    images: int = 10,
    io: PictureKind = "uint8",
    allow_float: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a float network as an int8 LiteRT file (.tflite) by litert-torch; see `srquant.engines.litert_torch`.

    Args:
        model: a float network or its checkpoint.
        path: the file.
        python: the interpreter of an environment with litert-torch and ai-edge-quantizer.
        data: folder of pictures to take the activation ranges from.
        shape: height and width of the pictures that the file takes, and of the crops.
        images: how many pictures are used.
        io: what pictures go in and come out as, uint8 or int8 (128 less).
        allow_float: take a file in which operations stay in float32 instead of refusing it.
        progress: told of the conversion, and of what stays in float32.

    Raises:
        UserError: the model is not a float network, the pictures cannot be used, or the conversion fails.
    """
    network, path = _float_network(model), Path(path)
    check_format(path, "litert")
    check_target(path)
    calibration, shown = build(CalibrationConfig, {"images": images}), progress or Silent()
    content = litert_torch.convert(
        network, Path(data), shape, str(python), calibration, shown, io=io, allow_float=allow_float
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def check_format(path: Path, to: str | None) -> ExportFormat:
    """The format of a file to export, from what was asked for and its suffix.

    Raises:
        UserError: an unknown format or suffix, or two that do not fit.
    """
    if to is not None and to not in EXPORT_SUFFIXES:
        raise unknown("format", to, EXPORT_SUFFIXES)
    for name, suffix in EXPORT_SUFFIXES.items():
        if path.suffix == suffix and to in (None, name):
            return name
    if to is None:
        known = ", ".join(f"{suffix} ({name})" for name, suffix in EXPORT_SUFFIXES.items())
        raise UserError(f"'{path}' does not tell its format by its suffix; known: {known}")
    raise UserError(f"a file of format '{to}' ends in '{EXPORT_SUFFIXES[to]}', not '{path.suffix}': '{path}'")


def evaluate(
    model: ModelOrPath,
    data: Path | str | Sequence[Path | str],
    engine: str = "auto",
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on benchmark sets: mean PSNR and SSIM on Y, shave = scale.

    Args:
        model: any model.
        data: one folder or several; see `srquant.imaging.open_set`.
        engine: what runs it; see `srquant.engines.ENGINES`.
        threads: processor threads of ONNX Runtime, LiteRT and OpenVINO.
        progress: told of every picture.

    Raises:
        UserError: a set is empty or mis-paired, or the engine cannot run the model.
    """
    opened = _opened(model)
    folders = _folders(data)
    path = Path(model) if isinstance(model, Path | str) else None
    told = facts(opened, name=str(path) if path else opened.__class__.__name__, digest=_digest(path) if path else None)
    return evaluate_engine(open_engine(opened, engine, threads=threads), folders, told, progress or Silent())


def upscale(
    model: ModelOrPath,
    source: Path | str,
    target: Path | str,
    *,
    engine: str = "auto",
    tile: Tile = "auto",
    overwrite: bool = False,
) -> list[Path]:
    """Enlarge a picture or a folder of pictures; returns the written files.

    Args:
        model: any model.
        source: a picture or a folder.
        target: a picture's path or a folder.
        engine: what runs the model.
        tile: side of a tile in low-resolution pixels, None for the whole picture; integer engines give
            the same pixels for every size.
        overwrite: replace files that exist.

    Raises:
        UserError: see `srquant.upscaling.upscale_path`.
    """
    runner = open_engine(_opened(model), engine)
    return upscale_path(runner, Path(source), Path(target), tile=tile, overwrite=overwrite)


def _folders(data: Path | str | Sequence[Path | str]) -> list[Path]:
    return [Path(data)] if isinstance(data, Path | str) else [Path(folder) for folder in data]


def _float_network(model: ModelOrPath) -> SRNetwork:
    network = _opened(model)
    if not isinstance(network, SRNetwork):
        raise UserError("only a float network can be quantised; this one is quantised already")
    return network


def _opened(model: ModelOrPath) -> Model:
    return load(model) if isinstance(model, Path | str) else model


def _digest(path: Path) -> str:
    """SHA-256 of a model's file; for an OpenVINO model, of the digests of its two files."""
    first, *others = map(sha256, files_of(path))
    return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first
