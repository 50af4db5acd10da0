"""Scores: benchmark sets through an engine, measured by the protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srquant.engines import Engine, ExportedFile, Model
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels
from srquant.files import atomic_path
from srquant.imaging import BenchmarkSet, open_set
from srquant.metrics import Protocol, psnr, ssim
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers import QuantizedNetwork
from srquant.upscaling import upscale_rgb
from srquant.upscaling.tiles import is_mirrored


@dataclass(frozen=True)
class ImageScore:
    """PSNR in dB (inf for identical pictures) and SSIM of one picture."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class SetScore:
    """The scores of a set: means over its pictures, and each of them."""

    psnr: float
    ssim: float
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class Facts:
    """What must be said with every score of a model.

    Attributes:
        model: path, or the kind of an object in memory.
        sha256: of the file, None for an object in memory.
        network: name of the network.
        scale: enlargement.
        placement: which tensors carry how many bits; "float32" for a float network.
        bits: of weights and activations.
    """

    model: str
    sha256: str | None
    network: str
    scale: int
    placement: str
    bits: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """Everything about one evaluation; `to_json` is its file form, `str` its short form."""

    facts: Facts
    engine: str
    protocol: str
    datasets: Mapping[str, SetScore] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; an infinite PSNR (identical pictures) is written as the text "inf"."""
        datasets = {
            name: {
                "psnr": _number(score.psnr),
                "ssim": score.ssim,
                "images": [{"name": i.name, "psnr": _number(i.psnr), "ssim": i.ssim} for i in score.images],
            }
            for name, score in self.datasets.items()
        }
        told = {key: getattr(self.facts, key) for key in ("model", "sha256", "network", "scale")}
        return {
            **told,
            "engine": self.engine,
            "protocol": self.protocol,
            "placement": self.facts.placement,
            "bits": dict(self.facts.bits),
            "datasets": datasets,
        }

    def save(self, path: Path) -> None:
        """Write the JSON file.

        Raises:
            UserError: the path cannot be written.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {s.psnr:.3f} dB / {s.ssim:.4f}" for name, s in self.datasets.items())
        return f"{self.facts.network} x{self.facts.scale} on {self.engine}: {scores} ({self.protocol})"


def facts(model: Model, *, name: str, digest: str | None) -> Facts:
    """What is to be said about a model."""
    if isinstance(model, SRNetwork):
        bits = {"weights": 32, "activations": 32}
        return Facts(name, digest, model.info.name, model.info.scale, "float32", bits)
    if isinstance(model, QuantizedNetwork):
        check_levels(model)
        quantization = model.quantization
        bits = {"weights": quantization.weight_bits, "activations": quantization.activation_bits}
        return Facts(name, digest, model.info.name, model.info.scale, str(model.placement), bits)
    return _exported_facts(model, name, digest)


def _exported_facts(model: ExportedFile, name: str, digest: str | None) -> Facts:
    told, info = model.description.provenance, model.description.info
    quantization = told.get("quantization", {"weight_bits": 32, "activation_bits": 32})
    bits = {"weights": quantization["weight_bits"], "activations": quantization["activation_bits"]}
    return Facts(name, digest, info.name, info.scale, told.get("placement", "float32"), bits)


def evaluate_engine(engine: Engine, folders: Sequence[Path], told: Facts, progress: Progress) -> Evaluation:
    """Score an engine on sets of pictures.

    A network for luma is scored as all others, on the RGB picture; see `srquant.upscaling.colour`.

    Raises:
        UserError: no folder is given, two sets have one name, a set is empty or mis-paired, or a picture is smaller
            than the one shape that the engine takes.
    """
    if not folders:
        raise UserError("no benchmark set is given")
    sets = [open_set(folder, engine.info.scale) for folder in folders]
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise UserError(f"two benchmark sets have the same name: {', '.join(names)}")
    protocol = Protocol.standard(engine.info.scale)
    datasets = {one.name: _score(engine, one, protocol, progress) for one in sets}
    return Evaluation(told, engine.name, str(protocol), datasets)


def _score(engine: Engine, benchmark: BenchmarkSet, protocol: Protocol, progress: Progress) -> SetScore:
    images = []
    progress.start(benchmark.name, len(benchmark.pairs))
    try:
        for pair in benchmark.pairs:
            low, high = pair.load(engine.info.scale)
            _check_shape(engine, pair.name, *low.shape[:2])
            enlarged = upscale_rgb(engine, low, None if engine.shape is None else "auto")
            images.append(ImageScore(pair.name, psnr(enlarged, high, protocol), ssim(enlarged, high, protocol)))
            progress.advance()
    finally:
        progress.finish()
    means = [math.fsum(getattr(i, key) for i in images) / len(images) for key in ("psnr", "ssim")]
    return SetScore(means[0], means[1], tuple(images))


def _check_shape(engine: Engine, name: str, height: int, width: int) -> None:
    """Refuse a picture that would have to be mirrored: its score would not be the network's."""
    if is_mirrored(engine, height, width):
        assert engine.shape is not None
        raise UserError(
            f"'{name}' has {height}x{width} pixels, fewer than the {engine.shape[0]}x{engine.shape[1]} that the file "
            "takes, so its score would not be the network's: export it with a smaller --shape, or score the artefact"
        )


def _number(value: float) -> float | str:
    return "inf" if math.isinf(value) else value
