"""Scores of what was trained, one benchmark set at a time, and the row of results they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from srquant.config import Experiment
from srquant.engines import open_engine
from srquant.evaluation.scores import Facts, evaluate_engine, facts
from srquant.experiments.training import Trained
from srquant.files import atomic_path
from srquant.imaging import open_set
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers import QuantizedNetwork

SCORES_FOLDER = "scores"
AUTOMATIC = "auto"
SIMULATION = "simulate"
"""The engine of networks that cannot run as integers; the table names it, too."""


class Benchmark:
    """A benchmark set that scores are kept of; its folder is looked at once for each scale.

    Args:
        folder: see `srquant.imaging.open_set`.

    Raises:
        UserError: the set cannot be opened.

    Attributes:
        folder: as given.
        name: of the set, and of the file of its scores.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, open_set(folder, 1).name
        self._digests: dict[int, str] = {}

    def digest(self, scale: int) -> str:
        """Of the HR pictures, and of the LR ones where they are not made from HR.

        Raises:
            UserError: the set has no such pairs.
        """
        if scale not in self._digests:
            pairs = open_set(self.folder, scale).pairs
            partners = [pair.lr for pair in pairs if pair.lr is not None]
            self._digests[scale] = pictures_digest([*(pair.hr for pair in pairs), *partners])
        return self._digests[scale]


def engine_of(engine: str, *, quantized: bool, simulated: bool) -> str:
    """What runs a trained network: PyTorch a float one, `engine` a deployed one, the simulation any other.

    Args:
        engine: that was asked for. "auto" takes ONNX Runtime, which equals the integer reference bit for bit, or
            PyTorch where it is not installed.
        quantized: whether it is no float network.
        simulated: whether it cannot run as integers.
    """
    if not quantized:
        return "torch"
    if simulated:
        return SIMULATION
    if engine == AUTOMATIC:
        return "onnxruntime" if find_spec("onnxruntime") and find_spec("onnx") else "torch"
    return engine


def score(trained: Trained, benchmark: Path, engine: str, progress: Progress) -> dict[str, Any]:
    """The scores of a finished training on a set, as `Evaluation.to_json` tells them; also kept in its folder.

    `pictures` among them is a digest of the set, so that they are not taken for those of other pictures.

    Args:
        trained: finished.
        benchmark: see `srquant.imaging.open_set`.
        engine: what runs a deployed network; see `engine_of`.
        progress: told of every picture.

    Raises:
        UserError: the set cannot be read, or the engine cannot run the network.
    """
    assert trained.model is not None
    runner, opened = open_engine(trained.model, _engine(trained, engine)), Benchmark(benchmark)
    pictures = opened.digest(_info(trained).scale)
    told = {**evaluate_engine(runner, [benchmark], _facts(trained), progress).to_json(), "pictures": pictures}
    path = _path(trained.folder, opened)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return told


def kept_score(trained: Trained, benchmark: Path, engine: str) -> dict[str, Any] | None:
    """What `score` kept of the same network, engine and pictures; None where there is nothing.

    Raises:
        UserError: the set cannot be read.
    """
    return find_score(trained.folder, Benchmark(benchmark), trained.sha256, _engine(trained, engine))


def find_score(folder: Path, benchmark: Benchmark, sha256: str | None, engine: str) -> dict[str, Any] | None:
    """What `score` kept in the folder of a run; None where there is nothing of this network, engine and pictures.

    Args:
        folder: of the run.
        benchmark: the set.
        sha256: of the network.
        engine: that `engine_of` names.

    Raises:
        UserError: the set cannot be read.
    """
    try:
        told = json.loads(_path(folder, benchmark).read_text(encoding="utf-8"))
        known, scale = (told["sha256"], told["engine"], told["pictures"]), told["scale"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told if known == (sha256, engine, benchmark.digest(scale)) else None


def pictures_digest(files: Iterable[Path]) -> str:
    """SHA-256 of the names and sizes of files, wherever they lie."""
    listing = [f"{path.name} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(listing).encode(errors="surrogateescape")).hexdigest()


def _path(folder: Path, benchmark: Benchmark) -> Path:
    return folder / SCORES_FOLDER / f"{benchmark.name}.json"


def _engine(trained: Trained, engine: str) -> str:
    quantized = not isinstance(trained.model, SRNetwork)
    return engine_of(engine, quantized=quantized, simulated=trained.simulated_because is not None)


def result_row(
    name: str, experiment: Experiment, trained: Trained, scores: Sequence[Mapping[str, Any]], engine: str
) -> dict[str, str]:
    """The row of a finished experiment: what was done, and PSNR and SSIM of every set."""
    quantization, training = experiment.quantization, experiment.training
    method = experiment.method
    told: dict[str, object] = {
        "experiment": name,
        "network": experiment.network.name,
        "scale": _info(trained).scale,
        "method": "float" if method is None else method.name,
        "weight_bits": 32 if quantization is None else quantization.weight_bits,
        "activation_bits": 32 if quantization is None else quantization.activation_bits,
        "placement": "" if quantization is None else quantization.placement,
        "rest": "float" if quantization is None else quantization.rest,
        "steps": trained.steps,
        "batch": training.batch,
        "patch": training.patch,
        "precision": training.precision,
        "validation_psnr": "" if trained.validation_psnr is None else f"{trained.validation_psnr:.4f}",
        "engine": _engine(trained, engine),
        "sha256": trained.sha256,
        "protocol": "; ".join(dict.fromkeys(one["protocol"] for one in scores)),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for one in scores:
        for benchmark, means in one["datasets"].items():
            told[f"{benchmark}_psnr"] = _digits(means["psnr"])
            told[f"{benchmark}_ssim"] = _digits(means["ssim"])
    return {key: str(value) for key, value in told.items()}


def _facts(trained: Trained) -> Facts:
    """What is said with every score."""
    model, name = trained.model, str(trained.file or trained.folder)
    if isinstance(model, QuantizedNetwork) and trained.simulated_because is not None:
        how = model.quantization
        bits = {"weights": how.weight_bits, "activations": how.activation_bits}
        return Facts(name, trained.sha256, model.info.name, model.info.scale, str(model.placement), bits)
    assert model is not None
    return facts(model, name=name, digest=trained.sha256)


def _info(trained: Trained) -> Any:
    assert trained.model is not None
    return trained.model.info


def _digits(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"
