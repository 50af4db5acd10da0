from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import srquant
from srquant.imaging import Picture, read_picture, write_picture
from srquant.networks import EDSR, EDSRConfig
from srquant.networks.loading import save_network


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_public_names() -> None:
    assert srquant.__all__ == [
        "CalibrationConfig",
        "QuantizationConfig",
        "UserError",
        "evaluate",
        "export",
        "load",
        "open_engine",
        "quantize",
        "save",
        "train",
        "upscale",
    ]
    for name in srquant.__all__:
        found = getattr(srquant, name)
        assert callable(found)
        assert inspect.getdoc(found), f"{name} has no words"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'srquant' has no attribute 'quantise'"):
        srquant.quantise  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(srquant, "np")


def test_the_version_is_that_of_the_project() -> None:
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    told = re.search(r'^version = "(.+)"$', project.read_text(), re.MULTILINE)
    assert told is not None
    assert srquant.__version__ == told[1]


@pytest.mark.parametrize(
    "module", ["srquant", "srquant.cli", "srquant.cli.commands", "srquant.config", "srquant.presets"]
)
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "PIL", "safetensors")
    assert python(f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_a_name_imports_what_it_needs() -> None:
    assert python("import srquant, sys; srquant.load; print('torch' in sys.modules)") == "True"
    assert python("from srquant import *; print(QuantizationConfig().weight_bits)") == "8"


def test_the_example_of_the_docstring_runs(tmp_path: Path) -> None:
    assert srquant.__doc__ is not None
    example = srquant.__doc__[srquant.__doc__.index("import srquant") :]
    assert example.count("srquant.") == 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_network(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), tmp_path / "edsr.safetensors")
    for name in ("pictures/a.png", "Set5/HR/b.png", "small.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (32, 30, 3), dtype=np.uint8)
        write_picture(tmp_path / name, Picture(pixels, None, False, None, None))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("edsr x2 on onnxruntime: Set5 ")
    assert read_picture(tmp_path / "large.png").rgb.shape == (64, 60, 3)
    assert {path.name for path in tmp_path.glob("edsr*")} == {
        "edsr.safetensors",
        "edsr-int8.safetensors",
        "edsr-int8.onnx",
    }
