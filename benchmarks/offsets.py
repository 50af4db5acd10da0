"""Time of a network whose channels have offsets against the same without, on ONNX Runtime; prints Markdown.

    python benchmarks/offsets.py [--blocks 8] [--bits 2] [--size 120x160] [--rounds 10]

EDSR x2 with 64 channels from random weights, all in integers (placement `daq`); every low-bit tensor that can have
offsets has random ones. One thread, processor time. All variants live in one process and enlarge the picture one after
the other in every round and in rotated order. Limits per channel are what shifts leave to be computed: a `Min`, and a
`Max` where a channel starts above the lowest code.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np
import tables
import torch
import turns

from srquant import QuantizationConfig
from srquant.engines import open_engine
from srquant.integer import lower
from srquant.methods.odm import ODM
from srquant.methods.offsets import offset_parameters
from srquant.networks import EDSR, EDSRConfig
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.deployment import deploy

KINDS = ("none", "shift", "scale", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--size", default="120x160", help="height x width of the input")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    torch.set_num_threads(1)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    networks = {kind: trained(kind, arguments.blocks, arguments.bits) for kind in KINDS}
    engines = {kind: open_engine(network, "onnxruntime", threads=1) for kind, network in networks.items()}
    steps: dict[str, turns.Step] = {kind: lambda engine=engine: engine.run(picture) for kind, engine in engines.items()}
    print(_report(arguments, networks, turns.measure(steps, arguments.rounds)), flush=True)


def trained(kind: str, blocks: int, bits: int) -> QuantizedNetwork:
    """A deployed network whose bounds are those of one batch."""
    torch.manual_seed(0)
    network = EDSR(EDSRConfig(scale=2, blocks=blocks, width=64))
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement="daq")
    quantized = QuantizedNetwork(network, config, trainable=True)
    options = {"offsets": kind, "offset_ratio": 1.0, "calibration_batches": 1, "gate": "off"}
    objective = ODM.from_options(quantized, None, options, 1e-4)
    objective.start_epoch(1)
    with torch.no_grad():
        objective(255 * torch.rand(4, 3, 24, 24), 255 * torch.rand(4, 3, 48, 48))
        for parameter in offset_parameters(quantized):
            parameter.uniform_(-1.5, 1.5)
    return deploy(quantized.eval())


def _report(arguments: argparse.Namespace, networks: dict[str, QuantizedNetwork], times: dict[str, list[float]]) -> str:
    base, rows = times[KINDS[0]], []
    for kind, taken in times.items():
        limits = lower(networks[kind]).channel_limits()
        ratio = median(mine / theirs for mine, theirs in zip(taken, base, strict=True))
        limited = f"{len(limits)}", f"{sum(limits.values())}"
        numbers = f"{min(taken):.0f}", f"{median(taken):.0f}", f"{min(taken) / min(base):.2f}", f"{ratio:.2f}"
        rows.append([kind, *limited, *numbers])
    columns = ["offsets", "shifted tensors", "limits", "best ms", "median ms", "best / none", "median / none"]
    what = (
        f"EDSR x2, {arguments.blocks} blocks of 64 channels, {arguments.bits} bit, input {arguments.size}, ONNX "
        f"Runtime on one thread; {arguments.rounds} rounds in turn."
    )
    return tables.page(what, columns, rows)


if __name__ == "__main__":
    main()
