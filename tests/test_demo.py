"""The demo in its quick form, as a person would start it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "models" / "edsr_compact_x2.safetensors"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo wrote and what it printed."""
    if not WEIGHTS.is_file():
        pytest.skip(f"no {WEIGHTS.relative_to(ROOT)}")
    for package in ("skimage", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--quick", "--output", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_it_writes_its_files(demo: tuple[Path, str]):
    folder, _ = demo
    for name in ("edsr_int8.safetensors", "edsr_int8.onnx", "scores.json", "enlarged.png", "side_by_side.png"):
        assert (folder / name).stat().st_size > 0, name


def test_it_enlarges_by_two(demo: tuple[Path, str]):
    folder, _ = demo
    with (
        Image.open(folder / "low-resolution" / "motorcycle.png") as small,
        Image.open(folder / "enlarged.png") as large,
    ):
        assert large.size == (2 * small.width, 2 * small.height)


def test_eight_bits_cost_little_and_beat_bicubic(demo: tuple[Path, str]):
    scores = {title: means["mean"] for title, means in json.loads((demo[0] / "scores.json").read_text()).items()}
    plain = scores["float32, torch"]
    for engine in ("torch", "onnxruntime", "openvino"):
        assert scores[f"int8, {engine}"] == pytest.approx(plain, abs=0.2)
        assert scores[f"int8, {engine}"] > scores["bicubic"] + 0.5


def test_the_pictures_scored_are_not_those_calibrated_on(demo: tuple[Path, str]):
    folder, _ = demo
    calibrated, scored = ({path.name for path in (folder / name).iterdir()} for name in ("calibration", "held-out"))
    assert calibrated
    assert scored
    assert not calibrated & scored


def test_it_ends_with_commands_to_try(demo: tuple[Path, str]):
    folder, printed = demo
    assert "What to try next" in printed
    assert f"quantize models/edsr_compact_x2.safetensors -o {folder}" in printed.replace("\n", " ")


def test_the_python_example_of_the_readme_runs(demo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    folder, _ = demo
    monkeypatch.chdir(tmp_path)
    shutil.copy(WEIGHTS, "edsr.safetensors")
    shutil.copytree(folder / "calibration", "photographs")
    shutil.copytree(folder / "held-out", "Set5")
    shutil.copy(folder / "low-resolution" / "motorcycle.png", "small.png")
    exec(compile(example, "README.md", "exec"), {})
    assert Path("large.png").is_file()
