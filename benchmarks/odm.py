"""Time of a training step of ODM against the float32 step, by how its regulariser is computed; prints Markdown.

    python benchmarks/odm.py [--batch 4] [--patch 24] [--rounds 10] [--bits 2] [--into README.md]

EDSR-baseline x4 from random weights; the weights and inputs of the 33 convolutions of its body are quantised, the rest
is in float32. A step is forward, backward (one or two passes) and Adam. One thread, channels last, processor time. All
variants live in one process and take their steps one after the other in every round and in rotated order.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tables
import torch
import turns
from torch import Tensor

from srquant import QuantizationConfig, UserError
from srquant.methods.odm import ODM
from srquant.networks import EDSR, EDSRConfig
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.acceleration import TrainingKernel, use_kernel
from srquant.training import Objective, Reconstruction
from srquant.training.gradients import take_gradients

BASE = "float32"
RATE = 1e-4


@dataclass(frozen=True)
class Variant:
    """One row: the kernel and ODM's options; neither for the float network."""

    kernel: TrainingKernel | None
    options: dict[str, Any]


_OFF: dict[str, Any] = {"gate": "off"}
_ONE: dict[str, Any] = {"cooperation": "features"}
_ELEMENT: dict[str, Any] = {"cooperation": "features", "granularity": "element", "gate": "sign"}
VARIANTS: dict[str, Variant] = {
    BASE: Variant(None, {}),
    "eager, no regulariser": Variant("eager", _OFF),
    "eager, one pass": Variant("eager", _ONE),
    "eager, two passes": Variant("eager", {}),
    "compiled, no regulariser": Variant("compiled", _OFF),
    "compiled, one pass": Variant("compiled", _ONE),
    "compiled, one pass, gate by element": Variant("compiled", _ELEMENT),
    "compiled, two passes": Variant("compiled", {}),
    "integer, no regulariser": Variant("integer", _OFF),
    "integer, one pass": Variant("integer", _ONE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=24, help="side of the low-resolution patches")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="names of rows; float32 is always there")
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps: dict[str, turns.Step] = {}
    for name in (BASE, *(arguments.variants or VARIANTS)):
        try:
            steps[name] = _step(VARIANTS[name], arguments)
            steps[name]()
        except UserError as error:
            steps.pop(name, None)
            print(f"left out: {name} ({error})")
    report = _report(arguments, turns.measure(steps, arguments.rounds))
    print(report, flush=True)
    if arguments.into is not None:
        tables.insert(arguments.into, "odm-training", report)


def _step(variant: Variant, arguments: argparse.Namespace) -> turns.Step:
    torch.manual_seed(0)
    network = EDSR(EDSRConfig(scale=4, blocks=16, width=64))
    low = 255 * torch.rand(arguments.batch, 3, arguments.patch, arguments.patch)
    low = low.contiguous(memory_format=torch.channels_last)
    high = 255 * torch.rand(arguments.batch, 3, 4 * arguments.patch, 4 * arguments.patch)
    objective: Objective = Reconstruction(network, RATE)
    if variant.kernel is not None:
        bits = arguments.bits
        config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement="strict", rest="float")
        quantized = QuantizedNetwork(network, config, trainable=True)
        objective = ODM.from_options(quantized, None, variant.options, RATE)
        objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        use_kernel(quantized, variant.kernel)
        objective.start_epoch(1)
        objective(low, high)
        objective.start_epoch(2)
    groups = objective.parameter_groups()
    optimizer = torch.optim.Adam(groups, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]

    def step() -> None:
        take_gradients(objective, parameters, objective.forward(low, high), _backward)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _backward(parts: Sequence[Tensor], keep_graph: bool) -> None:
    torch.stack([*parts]).sum().backward(retain_graph=keep_graph)


def _report(arguments: argparse.Namespace, times: dict[str, list[float]]) -> str:
    base = times[BASE]
    rows = []
    for name, taken in times.items():
        ratio = median(mine / theirs for mine, theirs in zip(taken, base, strict=True))
        numbers = f"{min(taken):.0f}", f"{median(taken):.0f}", f"{min(taken) / min(base):.2f}", f"{ratio:.2f}"
        rows.append([name, *numbers])
    columns = ["ODM's step", "best ms", "median ms", "best, against float32", "median, against float32"]
    what = (
        f"EDSR-baseline x4, batch {arguments.batch}, patches {arguments.patch}x{arguments.patch}, one thread; "
        f"body with {arguments.bits}-bit weights and activations; {arguments.rounds} rounds in turn."
    )
    return tables.page(what, columns, rows)


if __name__ == "__main__":
    main()
