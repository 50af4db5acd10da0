"""Resident memory of a child process that enlarges a picture with trained weights: it stays under a bound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = r"""
import re, sys
from pathlib import Path

import numpy as np
import torch

from srquant.config import QuantizationConfig
from srquant.engines import load, open_engine
from srquant.imaging import Picture, write_picture
from srquant.quantizers import QuantizedNetwork
from srquant.upscaling import upscale_path

engine, weights, folder, width, height = sys.argv[1:]
torch.set_num_threads(1)
network = QuantizedNetwork(load(weights), QuantizationConfig())
noise = np.random.default_rng(0).integers(0, 256, (int(height), int(width), 3), dtype=np.uint8)
crop = torch.from_numpy(noise[:48, :48].copy()).permute(2, 0, 1)[None].float()
network.calibrate(lambda: [crop])
source = Path(folder) / "in.png"
write_picture(source, Picture(noise))
upscale_path(open_engine(network, engine, threads=1), source, Path(folder) / "out.png")
# ru_maxrss would count the parent's memory at the fork
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_memory_stays_below_the_promise(shared: Path, tmp_path: Path, engine: str) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("resident memory is read from /proc")
    if engine != "torch":
        pytest.importorskip(engine)
    weights = shared / "data" / "weights" / "edsr8_x2.safetensors"
    assert peak_mebibytes(engine, weights, tmp_path, 960, 540) < 1200


def peak_mebibytes(engine: str, weights: Path, folder: Path, width: int, height: int) -> int:
    """Largest resident memory of the whole process, in MiB."""
    command = [sys.executable, "-c", PROGRAM, engine, str(weights), str(folder), str(width), str(height)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
