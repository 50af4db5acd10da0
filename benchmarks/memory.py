"""Peak resident memory of enlarging one 1920x1080 picture, an engine at a time in a process of its own.

    python benchmarks/memory.py [--model PATH] [--size 1080x1920] [--tile auto]

Prints Markdown. The whole process counts: Python, PyTorch, the runtime, the picture and its result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import tables

ROOT = Path(__file__).resolve().parents[1]
COMPACT = ROOT / "models" / "edsr_compact_x2.safetensors"
RUNS = (("float32", "torch"), ("int8", "torch"), ("int8", "onnxruntime"), ("int8", "openvino"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=COMPACT, help="float checkpoint")
    parser.add_argument("--size", default="1080x1920", help="height x width of the input")
    parser.add_argument("--tile", default="auto", help="auto, whole, or a side in low-resolution pixels")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        model, engine, picture, folder = arguments.child
        _enlarge(model, engine, picture, folder, arguments.tile)
        return
    height, width = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([sys.executable, "-c", _PREPARE, arguments.model, folder, str(height), str(width)])
        if made.returncode:
            raise SystemExit(made.returncode)
        rows = [_measure(folder, arguments.model, bits, engine, arguments.tile) for bits, engine in RUNS]
    print(f"**{arguments.model.stem}**: {width}x{height} enlarged, tile {arguments.tile}, one thread.  ")
    print(machine.describe() + "\n")
    print(tables.table(["engine", "peak MB, whole process", "before the picture", "seconds"], rows), flush=True)


_PREPARE = """
import sys
from pathlib import Path
from PIL import Image
import srquant
from srquant.evaluation.verification import drawn_picture

model, folder, height, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
Image.fromarray(drawn_picture(3, height, width)).save(f"{folder}/picture.png")
srquant.save(srquant.quantize(model, folder), Path(folder, "int8.safetensors"))
"""


def _measure(folder: str, model: Path, bits: str, engine: str, tile: str) -> list[str]:
    path = str(model) if bits == "float32" else f"{folder}/int8.safetensors"
    command = [sys.executable, __file__, "--tile", tile, "--child", path, engine, f"{folder}/picture.png", folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        return [f"{engine} {bits}", result.stderr.strip().splitlines()[-1], "", ""]
    told = json.loads(result.stdout)
    return [f"{engine} {bits}", f"{told['peak']:.0f}", f"{told['before']:.0f}", f"{told['seconds']:.1f}"]


def _enlarge(model: str, engine: str, picture: str, folder: str, tile: str) -> None:
    """In the child: enlarge once and print the peaks in MB."""
    import time

    import torch

    import srquant
    from srquant.upscaling import upscale_path

    torch.set_num_threads(1)
    runner = srquant.open_engine(srquant.load(model), engine, threads=1)
    before, start = _peak(), time.perf_counter()
    side = "auto" if tile == "auto" else None if tile == "whole" else int(tile)
    upscale_path(runner, Path(picture), Path(folder) / f"{engine}.png", tile=side, overwrite=True)
    print(json.dumps({"before": before, "peak": _peak(), "seconds": time.perf_counter() - start}))


def _peak() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
