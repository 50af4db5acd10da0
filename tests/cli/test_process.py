from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_quantized import float_network, noise

from srquant.imaging import Picture, write_picture
from srquant.networks.loading import save_network


def srquant(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "srquant", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_help_is_quick_and_loads_no_torch(tmp_path: Path) -> None:
    took = []
    for _ in range(3):  # the best of three: other work may run beside the tests
        start = time.perf_counter()
        done = srquant("--help", cwd=tmp_path)
        took.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(took) < 1.5, took
    for command in ("networks", "info", "quantize", "export", "verify", "evaluate", "upscale"):
        assert command in done.stdout
    check = """
import sys
from srquant.cli.app import main
sys.argv = ["srquant", "quantize", "--help"]
try:
    main()
except SystemExit:
    pass
print([m for m in ("torch", "numpy", "onnx", "onnxruntime", "openvino") if m in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_the_installed_command_and_the_module_are_the_same(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("srquant")
    if not script.exists():
        pytest.skip("srquant is not installed as a command")
    installed = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert installed.stdout == srquant("--version", cwd=tmp_path).stdout
    assert installed.stdout.startswith("srquant ")


def test_a_whole_path_in_real_processes(tmp_path: Path) -> None:
    save_network(float_network("abpn_x3"), tmp_path / "net.safetensors")
    (tmp_path / "pictures").mkdir()
    write_picture(tmp_path / "pictures" / "p.png", Picture(noise(48, 51), None, False, None, None))
    done = srquant("quantize", "net.safetensors", "-o", "q.safetensors", "--data", "pictures", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("warning: ranges from 1 of 1 pictures")
    assert "wrote" in done.stdout
    done = srquant("evaluate", "q.safetensors", "--data", "pictures", "--engine", "onnxruntime", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "onnxruntime" in done.stdout
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["net.safetensors", "pictures", "q.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "missing.safetensors"], "no such file"),
        (["quantize", "a.pth", "-o", "b.safetensors", "--data", "d", "--weight-bits", "1"], "weight_bits = 1"),
        (["evaluate", "a.onnx", "--data", "d"], "a.onnx"),
    ],
)
def test_a_mistake_ends_a_process_with_2_and_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = srquant(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interruption_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, threading, srquant.cli.app as app, srquant.engines as engines\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored\n"
        "def stuck(path):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait(20)\n"
        "engines.load = stuck\n"
        "import sys; sys.argv = ['srquant', 'verify', 'x.safetensors']\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"
    assert list(tmp_path.iterdir()) == []
