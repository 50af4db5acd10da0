"""Train the compact EDSR x2 that the demo quantises; every setting of the run is in this file.

    python examples/train_compact_edsr.py FOLDER... --validation FOLDER -o models/edsr_compact_x2.safetensors

L1 on patches, Adam with a cosine schedule, an exponential average of the weights, and a validation split that is
never a benchmark. A full run takes about an hour on one core.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from srquant.imaging import BenchmarkSet, Pair, downscale, find_pictures, read_picture
from srquant.imaging.resize import crop_to_multiple
from srquant.metrics import Protocol, psnr
from srquant.networks import EDSR, EDSRConfig
from srquant.networks.loading import save_network

SCALE, BLOCKS, WIDTH = 2, 8, 32
STEPS, BATCH, PATCH = 14_000, 12, 40
LEARNING_RATE, AVERAGE, SEED = 8e-4, 0.999, 0


def training_pairs(folders: list[Path]) -> list[tuple[Tensor, Tensor]]:
    """Low- and high-resolution pictures as uint8 [3,H,W]."""
    pairs = []
    for path in (path for folder in folders for path in find_pictures(folder)):
        high = crop_to_multiple(read_picture(path).rgb, SCALE)
        if min(high.shape[:2]) >= SCALE * PATCH:
            low = downscale(high, SCALE)
            pairs.append(tuple(torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in (low, high)))
    return pairs


def batch_of(pairs: list[tuple[Tensor, Tensor]], random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random patches, flipped and transposed, in 0..1; larger pictures are drawn more often."""
    lows, highs = [], []
    weights = np.array([low.shape[1] * low.shape[2] for low, _ in pairs], dtype=np.float64)
    for index in random.choice(len(pairs), BATCH, p=weights / weights.sum()):
        low, high = pairs[index]
        y, x = (int(random.integers(0, size - PATCH + 1)) for size in low.shape[1:])
        patches = [
            low[:, y : y + PATCH, x : x + PATCH],
            high[:, SCALE * y : SCALE * (y + PATCH), SCALE * x : SCALE * (x + PATCH)],
        ]
        flips = [axis for axis in (1, 2) if random.random() < 0.5]
        transpose = random.random() < 0.5
        patches = [p.flip(flips).transpose(1, 2) if transpose else p.flip(flips) for p in patches]
        lows.append(patches[0])
        highs.append(patches[1])
    return torch.stack(lows).float() / 255, torch.stack(highs).float() / 255


def validate(network: nn.Module, validation: BenchmarkSet) -> float:
    """Mean PSNR on Y over the validation pictures."""
    scores = []
    for pair in validation.pairs:
        low, high = pair.load(SCALE)
        with torch.inference_mode():
            out = network(torch.from_numpy(low.transpose(2, 0, 1)[None].copy()).float() / 255)
        picture = (out[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        scores.append(psnr(picture, high, Protocol.standard(SCALE)))
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    pairs = training_pairs(arguments.folders)
    held_out = find_pictures(arguments.validation)[:10]
    validation = BenchmarkSet("validation", tuple(Pair(path.stem, path, None) for path in held_out))
    print(f"{len(pairs)} training pictures, {len(held_out)} validation pictures", flush=True)

    network = EDSR(EDSRConfig(scale=SCALE, blocks=BLOCKS, width=WIDTH))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    warm_up = 200

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * (0.005 + 0.995 * (1 + math.cos(math.pi * step / arguments.steps)) / 2)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    start, losses = time.perf_counter(), []
    for step in range(1, arguments.steps + 1):
        low, high = batch_of(pairs, random)
        loss = nn.functional.l1_loss(network(low.to(memory_format=torch.channels_last)), high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        with torch.no_grad():
            decay = min(AVERAGE, step / (step + 100))
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        if step % 500 == 0 or step == arguments.steps:
            score = validate(average, validation)
            elapsed = time.perf_counter() - start
            print(
                f"step {step}  loss {np.mean(losses):.5f}  validation {score:.3f} dB  {elapsed:.0f} s",
                flush=True,
            )
            losses.clear()
            save_network(average, arguments.output)


if __name__ == "__main__":
    main()
