"""Time and memory of a quantisation-aware training step against the float32 step; prints Markdown.

    python benchmarks/training.py [--batch 4] [--patch 24] [--rounds 10] [--bits 4] [--into README.md]

EDSR-baseline x4 from random weights. In most rows nothing but the inputs and weights of the 32 convolutions of its
blocks is quantised, bounds trained, and a step is forward, L1 loss, backward and Adam: what a fake quantiser costs.
The rows that begin with DDTB take the step of that method, without gates and teacher, with its 48 quantisers on the
skips too; "8-bit rest" has a quantiser behind every other tensor as well, as it has to be for deployment. One thread,
channels last.

Time is the processor time of this process. All variants live in it and take their steps one after the other in every
round and in rotated order, so a busy moment of the machine hits all alike.

Memory is the peak of the resident memory during one step above what is resident between steps (weights, their
gradients, Adam's state, and all that PyTorch keeps), in a process of its own for each variant, after steps that
warm up. The C library is told to give large blocks back at once, so freed tensors do not count as held. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import tables
import torch
import turns
from torch import Tensor, nn
from torch.nn import functional

from srquant import QuantizationConfig, UserError
from srquant.methods import METHODS
from srquant.networks import EDSR, EDSRConfig
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.acceleration import TrainingKernel, use_kernel
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.straight_through import round_straight_through
from srquant.quantizers.weights import AsymmetricWeights, SymmetricWeights

BASE = "float32"
WEIGHTS = {
    "symmetric": SymmetricWeights,
    "minmax": lambda bits: AsymmetricWeights(bits, percentile=100),
    "percentile": AsymmetricWeights,
}
Step = turns.Step


@dataclass(frozen=True)
class Variant:
    """One row: how quantised layers compute (None: nothing is quantised), bfloat16 or not, the rest if it is DDTB's."""

    kernel: TrainingKernel | Literal["plain"] | None = None
    bfloat16: bool = False
    ddtb: Literal["float", "int8"] | None = None


VARIANTS: dict[str, Variant] = {
    BASE: Variant(),
    "plain operations": Variant("plain"),
    "eager": Variant("eager"),
    "compiled": Variant("compiled"),
    "fused": Variant("fused"),
    "integer": Variant("integer"),
    "DDTB, float32 rest, eager": Variant("eager", ddtb="float"),
    "DDTB, 8-bit rest, eager": Variant("eager", ddtb="int8"),
    "DDTB, 8-bit rest, integer": Variant("integer", ddtb="int8"),
    "bfloat16, not quantised": Variant(bfloat16=True),
    "bfloat16, compiled": Variant("compiled", bfloat16=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=24, help="side of the low-resolution patches")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--weights", choices=WEIGHTS, default="percentile", help="range of the weights")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="names of rows; float32 is always there")
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        print(json.dumps(_step_memory(_step(VARIANTS[arguments.child], arguments))))
        return
    chosen = {name: VARIANTS[name] for name in VARIANTS if name in (BASE, *(arguments.variants or VARIANTS))}
    steps: dict[str, Step] = {}
    for name, variant in chosen.items():
        try:
            steps[name] = _step(variant, arguments)
            steps[name]()
        except UserError as error:
            steps.pop(name, None)
            print(f"left out: {name} ({error})")
    times = turns.measure(steps, arguments.rounds)
    report = _report(arguments, times, {name: _memory(name) for name in times})
    print(report, flush=True)
    if arguments.into is not None:
        tables.insert(arguments.into, "training", report)


class PlainQuantizer(nn.Module):
    """What one writes first: one PyTorch operation after the other, under autograd."""

    def __init__(self, bits: int, trained: BoundsQuantizer) -> None:
        super().__init__()
        self.steps = 2**bits - 1
        self.lower, self.upper = trained.lower, trained.upper

    def forward(self, values: Tensor) -> Tensor:
        clipped = torch.max(torch.min(values, self.upper), self.lower)
        scale = (self.upper - self.lower) / self.steps
        return round_straight_through((clipped - self.lower) / scale) * scale + self.lower


def _step(variant: Variant, arguments: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    network = EDSR(EDSRConfig(scale=4, blocks=16, width=64))
    low = 255 * torch.rand(arguments.batch, 3, arguments.patch, arguments.patch)
    low = low.contiguous(memory_format=torch.channels_last)
    high = 255 * torch.rand(arguments.batch, 3, 4 * arguments.patch, 4 * arguments.patch)
    if variant.ddtb is not None and variant.kernel not in (None, "plain"):
        return _ddtb_step(network, variant.kernel, variant.ddtb, arguments.bits, low, high)
    model = network if variant.kernel is None else _quantized(network, variant.kernel, arguments, low)
    model = model.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    bounds = [p for name, p in model.named_parameters() if name.endswith(("lower", "upper"))]
    known = {id(p) for p in bounds}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": others, "lr": 1e-4}, {"params": bounds, "lr": 1e-2}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bfloat16):
            loss = functional.l1_loss(model(low), high)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ddtb_step(
    network: EDSR, kernel: TrainingKernel, rest: Literal["float", "int8"], bits: int, low: Tensor, high: Tensor
) -> Step:
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement="ddtb", rest=rest)
    model = QuantizedNetwork(network, config, trainable=True)
    objective = METHODS["ddtb"].from_options(model, None, {"gate": "none", "skt_weight": 0.0}, 1e-4)
    objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    objective.start_epoch(1)
    objective(low, high)  # sets the bounds
    use_kernel(model, kernel)
    optimizer = torch.optim.Adam(objective.parameter_groups(), fused=True)

    def step() -> None:
        sum(objective(low, high).values(), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _quantized(
    network: EDSR, kernel: TrainingKernel | Literal["plain"], arguments: argparse.Namespace, low: Tensor
) -> nn.Module:
    bits = arguments.bits
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement="strict", rest="float")
    model = QuantizedNetwork(network, config, trainable=True)
    convolutions = {name: c for name, c in model.convolutions().items() if name.count(".") > 1}

    model.replace_quantizers(lambda _, old: BoundsQuantizer(old.bits))
    for convolution in convolutions.values():
        convolution.weight_quantizer = WEIGHTS[arguments.weights](bits)
    with torch.no_grad():
        model.train()(low)  # sets the bounds
    used = {id(c.source) for c in convolutions.values()}
    for name, quantizer in model.activation_quantizers().items():
        assert isinstance(quantizer, BoundsQuantizer)
        if id(quantizer) not in used:
            model.graph.set_submodule(f"quantizers.{name}", nn.Identity())
        elif kernel == "plain":
            model.graph.set_submodule(f"quantizers.{name}", PlainQuantizer(bits, quantizer))
    if kernel != "plain":
        use_kernel(model, kernel)
    return model


def _memory(name: str) -> float | None:
    """Peak MB of a step of one variant, in a process of its own; None where it cannot be told."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if result.returncode:
        print(f"no memory of {name}: {result.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(result.stdout)


def _step_memory(step: Step) -> float:
    """In the child: megabytes (10^6) by which one step's peak is above what stays; the median of some."""
    for _ in range(2):
        step()
    peaks = []
    for _ in range(3):
        ctypes.CDLL(None).malloc_trim(0)
        rest = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        step()
        peaks.append((_resident("VmHWM") - rest) / 1e6)
    return median(peaks)


def _resident(field: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def _report(arguments: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, float | None]) -> str:
    base, base_memory = times[BASE], memory[BASE]
    rows = []
    for name, taken in times.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, base, strict=True)]
        row = [
            name,
            f"{min(taken):.0f}",
            f"{median(taken):.0f}",
            f"{min(taken) / min(base):.2f}",
            f"{median(ratios):.2f}",
        ]
        peak = memory[name]
        if peak is None or base_memory is None:
            rows.append([*row, "", ""])
        else:
            rows.append([*row, f"{peak:.0f}", f"{peak / base_memory:.2f}"])
    columns = [
        "step",
        "best ms",
        "median ms",
        "best, against float32",
        "median, against float32",
        "peak MB above rest",
        "against float32",
    ]
    what = (
        f"EDSR-baseline x4, batch {arguments.batch}, patches {arguments.patch}x{arguments.patch}, one thread; "
        f"32 convolutions with {arguments.bits}-bit weights ({arguments.weights} range) and activations; "
        f"{arguments.rounds} rounds in turn."
    )
    return tables.page(what, columns, rows)


if __name__ == "__main__":
    main()
