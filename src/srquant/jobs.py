"""The jobs of the command line as functions: quantize, export, evaluate, upscale.

Every job takes a model as a path or as what `srquant.load` returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from srquant.config import CalibrationConfig, QuantizationConfig
from srquant.engines import Model, load, open_engine
from srquant.engines.exported import ExportedFile
from srquant.engines.openvino import save_openvino
from srquant.errors import UserError, unknown
from srquant.evaluation.scores import Evaluation, evaluate_engine, facts
from srquant.files import check_target, sha256
from srquant.imaging.crops import calibration_crops
from srquant.integer import lower
from srquant.integer.onnx import describe_graph, to_onnx
from srquant.networks.info import SRNetwork
from srquant.networks.onnx import describe_network, float_onnx, write_onnx
from srquant.progress import Progress, Silent
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.calibration import quantize_network
from srquant.upscaling import Tile, upscale_path

ModelOrPath = Model | Path | str


def quantize(
    model: ModelOrPath,
    data: Path | str,
    quantization: QuantizationConfig | None = None,
    calibration: CalibrationConfig | None = None,
    *,
    progress: Progress | None = None,
) -> QuantizedNetwork:
    """Post-training quantisation of a float network.

    Args:
        model: a float network or its checkpoint.
        data: folder of pictures to take the activation ranges from.
        quantization: bits, placement, ranges; 8 bit by default.
        calibration: how many pictures and which.
        progress: told of every crop.

    Raises:
        UserError: the model is not a float network, or the pictures cannot be used.
    """
    network = _opened(model)
    if not isinstance(network, SRNetwork):
        raise UserError("only a float network can be quantised; this one is quantised already")
    quantization, calibration = quantization or QuantizationConfig(), calibration or CalibrationConfig()
    crops = calibration_crops(Path(data), network.info.scale, calibration)
    tensors = [torch.from_numpy(crop.pixels.copy()).permute(2, 0, 1)[None] for crop in crops]
    quantized = quantize_network(network, quantization, tensors, progress or Silent())
    quantized.calibration = {**calibration.model_dump(), "pictures": [crop.record for crop in crops]}
    return quantized


def export(model: ModelOrPath, path: Path | str, to: Literal["onnx", "openvino"] = "onnx") -> None:
    """Write a float or quantised network as an ONNX file (.onnx) or an OpenVINO model (.xml, .bin beside it).

    Raises:
        UserError: unknown format, a suffix that does not fit, or a model that is an exported file already.
    """
    opened, path = _opened(model), Path(path)
    suffixes = {"onnx": ".onnx", "openvino": ".xml"}
    if to not in suffixes:
        raise unknown("format", to, suffixes)
    if path.suffix != suffixes[to]:
        raise UserError(f"a file of format '{to}' ends in '{suffixes[to]}', not '{path.suffix}': '{path}'")
    if isinstance(opened, ExportedFile):
        raise UserError(f"'{opened.path}' is an exported file already; export the network or the artefact it came from")
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
        threads: processor threads of ONNX Runtime and OpenVINO.
        progress: told of every picture.

    Raises:
        UserError: a set is empty or mis-paired, or the engine cannot run the model.
    """
    opened = _opened(model)
    folders = [Path(data)] if isinstance(data, Path | str) else [Path(folder) for folder in data]
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


def _opened(model: ModelOrPath) -> Model:
    return load(model) if isinstance(model, Path | str) else model


def _digest(path: Path) -> str:
    """SHA-256 of a model's file; for an OpenVINO model, of the digests of its two files."""
    if path.suffix != ".xml":
        return sha256(path)
    return hashlib.sha256((sha256(path) + sha256(path.with_suffix(".bin"))).encode()).hexdigest()
