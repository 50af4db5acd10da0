"""The clip study: what a clip at the output costs and gives, by the output's grid and the calibration pictures.

Every combination of clip (removed, kept), output grid (given as 0..255, or calibrated as converters do) and set of
calibration pictures is quantised and scored; every form of a file is timed. All numbers are those of the given
benchmark set and machine. Finished rows are kept in `study.json`; a study that is begun again goes on behind them.
Where it is to time another picture, or otherwise, only the times are taken anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import fx

import srquant
from srquant.engines import ENGINES, Engine, Model, open_engine
from srquant.errors import UserError, unknown
from srquant.evaluation.clip_report import SHEET_FILE, save_report
from srquant.evaluation.clip_rows import (
    FLOAT,
    SETS,
    STUDY_FILE,
    TIMING,
    Row,
    Study,
    StudySettings,
    Variant,
    check_folder,
    variants,
)
from srquant.evaluation.clip_times import picture_to_time, times
from srquant.evaluation.patches import Patch, sheet, worst_patches
from srquant.evaluation.plots import check_plot
from srquant.files import sha256
from srquant.imaging import BenchmarkSet, Picture, open_set, write_picture
from srquant.imaging.crops import Crop, calibration_crops
from srquant.integer import lower
from srquant.methods.cfqp import representative
from srquant.metrics import Protocol, psnr, ssim
from srquant.networks.info import SRNetwork
from srquant.progress import Progress, Silent
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.calibration import quantize_network
from srquant.quantizers.calibration_file import weights_sha256
from srquant.quantizers.folding import fold
from srquant.quantizers.layers import ActivationQuantizer, KeptClip
from srquant.quantizers.structure import Structure
from srquant.upscaling import upscale_rgb


def run_clip_study(
    network: SRNetwork,
    benchmark: Path,
    pictures: Path,
    folder: Path,
    settings: StudySettings,
    progress: Progress,
) -> list[Path]:
    """Run a study, or what is left of it; every finished row is in the folder at once.

    Args:
        network: float.
        benchmark: set to score on, see `srquant.imaging.open_set`.
        pictures: folder of calibration pictures.
        folder: what to write into; made where it is missing.
        settings: the same for all rows.
        progress: told of every row.

    Returns:
        The written files: the study, its tables and plot, and a sheet of the patches that lost most.

    Raises:
        UserError: matplotlib is not installed, the engine is unknown or cannot run the network, a picture cannot be
            used, the network cannot be quantised, the picture to time is too large, the folder cannot be made or holds
            another study; nothing is written then. Also where there is too little memory to time the picture: the
            scores are kept then.
    """
    check_plot("a clip study")
    if settings.engine not in ENGINES:
        raise unknown("engine", settings.engine, ENGINES)
    pairs = open_set(benchmark, network.info.scale)
    crops = calibration_crops(pictures, network.info.scale, settings.calibration, network.info.channels)
    study = _begun(folder, _facts(network, pairs, crops, settings))
    check_folder(folder)
    _warn_of_scored(pairs, crops, progress)
    _check_engine(network, crops, settings)
    picture = picture_to_time(network.info.channels, settings)
    study = _scored(study, network, pairs, crops, folder, settings, progress)
    if not study.times:
        study = replace(study, times=times(_forms(network, crops, study, settings), picture, settings, progress))
        study.save(folder)
    written = [folder / STUDY_FILE, *save_report(study, folder), folder / SHEET_FILE]
    write_picture(written[-1], Picture(sheet(_patches(network, pairs, crops, settings)), None, False, None, None))
    return written


def _warn_of_scored(pairs: BenchmarkSet, crops: Sequence[Crop], progress: Progress) -> None:
    """Tell where pictures are calibrated on and scored, by their content."""
    scored = {sha256(pair.hr) for pair in pairs.pairs}
    both = sum(crop.record["sha256"] in scored for crop in crops)
    if both:
        progress.warn(
            f"calibrated on pictures that are scored ({both} of {len(crops)}): other ones tell what to expect of new "
            "pictures"
        )


def _check_engine(network: SRNetwork, crops: Sequence[Crop], settings: StudySettings) -> None:
    """Open every form of the network.

    Raises:
        UserError: the engine's package is missing, it cannot run the network, or a layer cannot be quantised.
    """
    forms = {variant.form: variant for variant in variants(len(crops), clipped=_has_clip(network))}
    for variant in forms.values():
        quantized, _ = quantized_variant(network, crops, replace(variant, pictures="1 natural"), settings)
        open_engine(quantized, settings.engine, threads=settings.threads)


def _scored(
    study: Study,
    network: SRNetwork,
    pairs: BenchmarkSet,
    crops: Sequence[Crop],
    folder: Path,
    settings: StudySettings,
    progress: Progress,
) -> Study:
    """The study with the scores of the float network and of all variants."""
    wanted = list(variants(len(crops), clipped=_has_clip(network)))
    finished = {row.variant for row in study.rows}
    progress.start("clip study", len(wanted) + 1)
    try:
        if not study.float_scores:
            engine = open_engine(network, "torch", threads=settings.threads)
            study = replace(study, float_scores=scores(engine, pairs))
            study.save(folder)
        progress.advance()
        for variant in wanted:
            if variant not in finished:
                progress.note(f"{variant.form}, {variant.pictures}")
                study = replace(study, rows=(*study.rows, _row(network, crops, variant, pairs, settings, progress)))
                study.save(folder)
            progress.advance()
    finally:
        progress.finish()
    return study


def quantized_variant(
    network: SRNetwork,
    crops: Sequence[Crop],
    variant: Variant,
    settings: StudySettings,
    progress: Progress | None = None,
) -> tuple[QuantizedNetwork, int]:
    """The network of a variant and the number of pictures it was calibrated on; `progress` is warned of these alone.

    Raises:
        UserError: none is left, or a layer cannot be quantised.
    """
    most, changes = SETS[variant.pictures]
    config = settings.calibration.model_copy(update=dict(changes))
    pictures, _ = representative(network, crops[:most], config, progress)
    return quantize_network(network, variant.quantization(settings.ranges), pictures, Silent()), len(pictures)


def _patches(network: SRNetwork, pairs: BenchmarkSet, crops: Sequence[Crop], settings: StudySettings) -> list[Patch]:
    """Where the set loses most: as converters calibrate, with the clip if there is one, against a given grid."""
    clip, removed = ("kept", "clip removed, ") if _has_clip(network) else ("removed", "")
    engines = {FLOAT: open_engine(network, "torch", threads=settings.threads)}
    for heading, variant in (
        ("clip kept, min-max" if removed else "min-max", Variant(clip, "calibrated", "all natural")),
        (f"{removed}given", Variant("removed", "given", "all natural")),
    ):
        quantized, _ = quantized_variant(network, crops, variant, settings)
        engines[heading] = open_engine(quantized, settings.engine, threads=settings.threads)
    return worst_patches(engines, pairs)


def scores(engine: Engine, benchmark: BenchmarkSet) -> dict[str, float]:
    """Mean PSNR and SSIM over a set, on RGB and on Y, with `scale` pixels shaved off.

    Raises:
        UserError: a picture cannot be scored, or is met exactly, so that no mean is finite.
    """
    scale = engine.info.scale
    found: dict[str, list[float]] = {}
    for pair in benchmark.pairs:
        low, high = pair.load(scale)
        enlarged = upscale_rgb(engine, low, None)
        for channel in ("rgb", "y"):
            protocol = Protocol(channel, scale)
            found.setdefault(f"psnr_{channel}", []).append(psnr(enlarged, high, protocol))
            found.setdefault(f"ssim_{channel}", []).append(ssim(enlarged, high, protocol))
            if math.isinf(found[f"psnr_{channel}"][-1]):
                raise UserError(f"'{pair.name}' is met exactly, its PSNR is infinite: leave it out of the set")
    return {name: fmean(values) for name, values in found.items()}


def _has_clip(network: SRNetwork) -> bool:
    return any(isinstance(module, KeptClip) for module in fold(network.collapsed(), keep_clip=True).modules())


def _row(
    network: SRNetwork,
    crops: Sequence[Crop],
    variant: Variant,
    pairs: BenchmarkSet,
    settings: StudySettings,
    progress: Progress,
) -> Row:
    first = (variant.clip, variant.output) == ("removed", "given")
    try:
        quantized, used = quantized_variant(network, crops, variant, settings, progress if first else None)
    except UserError as error:
        return Row(variant, refused=str(error))
    engine = open_engine(quantized, settings.engine, threads=settings.threads)
    return Row(
        variant,
        used,
        _output_range(quantized),
        scores(engine, pairs),
        quantized.storage_bytes(),
        len(lower(quantized).operations),
    )


def _forms(network: SRNetwork, crops: Sequence[Crop], study: Study, settings: StudySettings) -> dict[str, Model]:
    """The float network and one quantised network of every form."""
    models: dict[str, Model] = {FLOAT: network}
    for variant in (row.variant for row in study.rows if row.operations):
        if variant.form not in models:
            models[variant.form] = quantized_variant(network, crops, variant, settings)[0]
    return models


def _output_range(network: QuantizedNetwork) -> tuple[float, float] | None:
    """The range of the last tensor that has one of its own and that only moves and clips lie behind."""
    structure = Structure(network.graph)
    (output,) = network.graph.graph.find_nodes(op="output")
    node = structure.origin(output.args[0])
    while isinstance(node, fx.Node):
        module = structure.module(node)
        if isinstance(module, ActivationQuantizer) and not module.fixed:
            return network.ranges[str(node.target).removeprefix("quantizers.")]
        if not isinstance(module, ActivationQuantizer | KeptClip):
            return None
        node = structure.origin(node.args[0])
    return None


def _facts(network: SRNetwork, pairs: BenchmarkSet, crops: Sequence[Crop], settings: StudySettings) -> dict[str, Any]:
    digest = hashlib.sha256()
    for pair in pairs.pairs:
        digest.update(sha256(pair.hr).encode() + (sha256(pair.lr).encode() if pair.lr else b"made"))
    return {
        "srquant": srquant.__version__,
        "network": network.info.name,
        "scale": network.info.scale,
        "weights_sha256": weights_sha256(network),
        "set": pairs.name,
        "set_pictures": len(pairs.pairs),
        "set_sha256": digest.hexdigest(),
        "protocols": [str(Protocol(channel, network.info.scale)) for channel in ("rgb", "y")],
        "calibration_pictures": [crop.record for crop in crops],
        **asdict(settings),
        "calibration": settings.calibration.model_dump(),
    }


def _begun(folder: Path, facts: Mapping[str, Any]) -> Study:
    """The study that the folder holds, without its times where they were taken otherwise; or a new one."""
    found = Study.load(folder)
    if found is None:
        return Study(facts)
    plain = json.loads(json.dumps(facts))
    differing = [key for key in plain if found.facts.get(key) != plain[key]]
    others = [key for key in differing if key not in TIMING]
    if others:
        raise UserError(f"'{folder}' holds another study: its {others[0]} differs; take another folder")
    return replace(found, facts=plain, times={}) if differing else found
