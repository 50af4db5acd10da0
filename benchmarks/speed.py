"""Time every engine on one network, float32, bfloat16 and int8, on one thread; prints Markdown.

    python benchmarks/speed.py [--model PATH | --network edsr-baseline-x4] [--rounds 10] [--size 180x320]

All engines run in this process, one after the other in every round and in an order drawn anew: a busy moment of the
machine, and threads that have not come to rest yet, hit all alike. The input and the output of each are 8-bit pixels,
so conversions count.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

import tables
import torch
from PIL import Image

import srquant
from srquant.engines import Engine, Pixels
from srquant.engines.exported import Description
from srquant.engines.float_torch import FloatEngine
from srquant.engines.openvino import OpenVINOEngine
from srquant.evaluation.verification import drawn_picture
from srquant.networks import EDSR, EDSRConfig, SRNetwork
from srquant.networks.cost import macs
from srquant.networks.onnx import describe_network, float_onnx
from srquant.quantizers import QuantizedNetwork

ROOT = Path(__file__).resolve().parents[1]
COMPACT = ROOT / "models" / "edsr_compact_x2.safetensors"
BASE = "torch float32 (eager, channels last)"
Key = TypeVar("Key", bound=Hashable)

RANDOM_NETWORKS: dict[str, EDSRConfig] = {
    "edsr-baseline-x2": EDSRConfig(scale=2, blocks=16, width=64),
    "edsr-baseline-x4": EDSRConfig(scale=4, blocks=16, width=64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--model", type=Path, default=COMPACT, help="float checkpoint")
    choice.add_argument("--network", choices=RANDOM_NETWORKS, help="instead: a network with random weights")
    parser.add_argument("--size", default="180x320", help="height x width of the input")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))

    torch.set_num_threads(1)
    network, title = _network(arguments.network, arguments.model)
    engines = open_engines(network, quantized(network))
    times = measure(engines, drawn_picture(3, height, width), arguments.rounds)
    report = _report(title, network, height, width, arguments.rounds, times)
    print(report, flush=True)
    if arguments.into is not None:
        tables.insert(arguments.into, f"speed {title}", report)


def quantized(network: SRNetwork) -> QuantizedNetwork:
    """The network at 8 bit with ranges of a drawn picture: good enough for time, not for scores."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(drawn_picture(3, 192, 192)).save(Path(folder) / "drawn.png")
        return srquant.quantize(network, folder, calibration=srquant.CalibrationConfig(crop=48))


def open_engines(network: SRNetwork, integers: QuantizedNetwork) -> dict[str, Engine]:
    """Every engine that is installed, by the name of its row."""
    ways: dict[str, Callable[[], Engine]] = {
        BASE: lambda: FloatEngine(network),
        "torch bfloat16": lambda: FloatEngine(network, torch.bfloat16),
        "torch int8 (oneDNN)": lambda: srquant.open_engine(integers, "torch"),
        "ONNX Runtime float32": lambda: srquant.open_engine(network, "onnxruntime", threads=1),
        "ONNX Runtime int8": lambda: srquant.open_engine(integers, "onnxruntime", threads=1),
        "LiteRT int8": lambda: srquant.open_engine(integers, "litert", threads=1),
        "OpenVINO float32": lambda: srquant.open_engine(network, "openvino", threads=1),
        "OpenVINO bfloat16": lambda: _openvino_bfloat16(network),
        "OpenVINO int8": lambda: srquant.open_engine(integers, "openvino", threads=1),
    }
    engines: dict[str, Engine] = {}
    for name, way in ways.items():
        try:
            engines[name] = way()
        except srquant.UserError as error:
            print(f"left out: {name} ({error})")
    return engines


def measure(engines: Mapping[Key, Engine], picture: Pixels, rounds: int) -> dict[Key, list[float]]:
    """Milliseconds of every engine in every round; one more round before them warms up."""
    names = list(engines)
    times: dict[Key, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in random.Random(turn).sample(names, len(names)):
            start = time.perf_counter()
            engines[name].run(picture)
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def _network(name: str | None, path: Path) -> tuple[SRNetwork, str]:
    if name is not None:
        torch.manual_seed(0)
        return EDSR(RANDOM_NETWORKS[name]).eval(), name
    network = srquant.load(path)
    if not isinstance(network, SRNetwork):
        raise SystemExit(f"'{path}' is no float checkpoint")
    return network, path.stem


def _openvino_bfloat16(network: SRNetwork) -> Engine:
    description = Description.from_json(describe_network(network))
    return OpenVINOEngine(float_onnx(network).SerializeToString(), description, 1, precision="bf16")


def _report(title: str, network: SRNetwork, height: int, width: int, rounds: int, times: dict[str, list[float]]) -> str:
    operations, scale = 2 * macs(network, height, width), network.info.scale
    base = min(times[BASE])
    rows = [
        [
            name,
            f"{min(taken):.1f}",
            f"{median(taken):.1f}",
            f"{base / min(taken):.2f}x",
            f"{operations / min(taken) / 1e9:.2f}",
        ]
        for name, taken in times.items()
    ]
    columns = ["engine", "best ms", "median ms", "against torch float32", "TOPS"]
    what = (
        f"**{title}**: {width}x{height} -> {width * scale}x{height * scale}, {operations / 2e9:.1f} GMAC, "
        f"one thread, {rounds} rounds in turn, 8-bit pixels in and out."
    )
    return tables.page(what, columns, rows)


if __name__ == "__main__":
    main()
