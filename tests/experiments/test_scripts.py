"""The scripts of `experiments/`, as far as they go without network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from small_experiments import Place

from srquant.experiments import read_results

ROOT = Path(__file__).resolve().parents[2]


def test_the_queue_runs_from_a_folder_of_wheels(tmp_path: Path, place: Place) -> None:
    project = tmp_path / "project"
    (project / "experiments").mkdir(parents=True)
    (project / "src").symlink_to(ROOT / "src")
    script = project / "experiments" / "run.sh"
    script.write_bytes((ROOT / "experiments" / "run.sh").read_bytes())
    lines = ['preset = "edsr-x2"', "network = { blocks = 1, width = 4 }"]
    lines += ["training = { epochs = 2, steps_per_epoch = 2, batch = 2, patch = 8 }"]
    (project / "experiments" / "010-float.toml").write_text("\n".join(lines))
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "nothing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nothing.py", "")
        wheel.writestr("nothing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        wheel.writestr("nothing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("nothing-1.0.dist-info/RECORD", "nothing.py,,\n")
    words = ["wheels", "--data", place.pictures, "--validation", place.validation, "--benchmark", place.benchmark]
    done = subprocess.run(
        ["bash", script, *map(str, words), "--accelerator", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "010-float  finished" in done.stdout
    (row,) = read_results(tmp_path / "runs" / "results.csv")
    assert (row["experiment"], row["steps"]) == ("010-float", "4")
    assert float(row["SetA_psnr"]) > 5
