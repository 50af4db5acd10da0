"""Train the compact EDSR x2 that the demo quantises; every setting of the run is in this file.

    python examples/train_compact_edsr.py FOLDER... --validation FOLDER -o models/edsr_compact_x2.safetensors

L1 on patches, Adam with a cosine schedule, an exponential average of the weights, and a validation split that is
never a benchmark. A full run takes about an hour on one core; started again, it goes on where it was stopped.
The file in `models/` was trained with these settings before the training engine was there, by a loop of its own
whose cosine ended at 0.5 % of the learning rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from srquant.cli.output import Bars
from srquant.config import TrainingConfig
from srquant.networks import EDSR, EDSRConfig
from srquant.networks.loading import save_network
from srquant.training import Reconstruction, TrainingData, Validation, fit, load_checkpoint

SCALE, BLOCKS, WIDTH = 2, 8, 32
SETTINGS = TrainingConfig(
    epochs=28,
    steps_per_epoch=500,
    batch=12,
    patch=40,
    learning_rate=8e-4,
    schedule="cosine",
    warm_up_steps=200,
    ema=0.999,
    seed=0,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/edsr_compact_x2"), help="checkpoints and log")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="fewer for a trial")
    arguments = parser.parse_args()

    config = SETTINGS.model_copy(update={"epochs": arguments.epochs})
    torch.manual_seed(config.seed)
    network = EDSR(EDSRConfig(scale=SCALE, blocks=BLOCKS, width=WIDTH))
    objective = Reconstruction(network, config.learning_rate)
    progress = Bars()
    data = TrainingData(arguments.folders, SCALE, config, progress=progress)
    validation = Validation(arguments.validation, SCALE, config.validation_pictures)
    result = fit(objective, data, validation, config, arguments.run, resume=True, progress=progress)

    load_checkpoint(result.folder, "best").restore(objective)
    save_network(network, arguments.output)
    print(f"{len(data)} pictures, {result.step} steps, validation {result.best:.3f} dB at step {result.best_step}")


if __name__ == "__main__":
    main()
