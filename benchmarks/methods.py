"""Methods side by side on one small budget: what training saw against what runs as integers; prints Markdown.

    python benchmarks/methods.py RUNS --validation PICTURES --weights FLOAT [--into README.md]

RUNS is a folder of finished runs of `experiments/small/*.toml`, as experiments/small/README.md makes them. Scores are
those of the checkpoint that each artefact was made from, on the validation pictures of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tables

from srquant import open_engine
from srquant.engines import Engine
from srquant.evaluation.levels import check_levels
from srquant.files import sha256
from srquant.imaging import Pair, open_set
from srquant.metrics import Protocol, psnr
from srquant.networks.loading import load_network
from srquant.quantizers import load_artefact
from srquant.training import load_checkpoint

ENGINES = ("reference", "torch", "onnxruntime", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="float checkpoint that the runs started from")
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    arguments = parser.parse_args()
    found = [row(folder, arguments.validation) for folder in sorted(arguments.runs.iterdir()) if folder.is_dir()]
    if not found:
        raise SystemExit(f"there is no run in '{arguments.runs}'")
    found.sort(key=lambda one: -float(one[1]))
    columns = ["run", "in training", *(f"integers, {name}" for name in ENGINES), "artefact"]
    config = load_checkpoint(next(f for f in sorted(arguments.runs.iterdir()) if f.is_dir()), "last").config
    fp32 = reference(arguments.weights, arguments.validation, config)
    text = "\n".join(
        [
            tables.table(columns, found),
            "",
            f"PSNR in dB on {config['validation_pictures']} validation pictures of '{arguments.validation.name}' "
            f"({fp32:.3f} in float32). {Protocol.standard(2)}. "
            f"Budget: {config['epochs'] * config['steps_per_epoch']} steps of "
            f"{config['batch']} patches of {config['patch']}x{config['patch']}, seed {config['seed']}. "
            "The last column is the start of the artefact's SHA-256.",
        ]
    )
    print(text)
    if arguments.into is not None:
        tables.insert(arguments.into, "methods", text)


def reference(weights: Path, validation: Path, config: dict[str, Any]) -> float:
    network = load_network(weights)
    pictures = open_set(validation, network.info.scale).pairs[: config["validation_pictures"]]
    return score(open_engine(network, "torch"), pictures)


def row(folder: Path, validation: Path) -> list[str]:
    file = folder / "quantized.safetensors"
    network = load_artefact(file)
    check_levels(network)
    best = load_checkpoint(folder, "best")
    assert best.score is not None
    pictures = open_set(validation, network.info.scale).pairs[: best.config["validation_pictures"]]
    scores = [f"{score(open_engine(network, name), pictures):.3f}" for name in ENGINES]
    return [folder.name, f"{best.score:.3f}", *scores, sha256(file)[:12]]


def score(engine: Engine, pictures: tuple[Pair, ...]) -> float:
    scale = engine.info.scale
    pairs = (pair.load(scale) for pair in pictures)
    return float(np.mean([psnr(engine.run(low), high, Protocol.standard(scale)) for low, high in pairs]))


if __name__ == "__main__":
    main()
