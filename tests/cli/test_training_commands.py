from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from calling import run
from small_experiments import DDTB, FLOAT, SIMULATED, write_experiment, write_pictures

from srquant import presets
from srquant.cli.app import main
from srquant.engines import load
from srquant.experiments import read_results
from srquant.quantizers import QuantizedNetwork


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, settings and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 3)
    write_pictures(tmp_path / "validation", 1, seed=1)
    write_pictures(tmp_path / "SetA" / "HR", 2, seed=2)
    write_experiment(tmp_path / "float.toml", FLOAT)
    write_experiment(tmp_path / "ddtb.toml", DDTB)
    write_experiment(tmp_path / "official.toml", SIMULATED)
    write_experiment(tmp_path / "experiments" / "010-float.toml", FLOAT)
    write_experiment(tmp_path / "experiments" / "020-ddtb.toml", DDTB, weights="run:010-float")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.toml").write_text("[training\n")
    return tmp_path


PICTURES = ("--data", "pictures", "--validation", "validation", "--accelerator", "cpu")


def test_presets_lists_the_papers_numbers() -> None:
    told = run("presets")
    for name in presets.names():
        assert f"│ {name} " in told
    (row,) = [line for line in told.splitlines() if "edsr-x4-ddtb-w2a2" in line]
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert [cell.split(" / ")[0] for cell in cells[1:]] == ["30.97", "27.87", "27.09", "24.82"]


def test_presets_shows_ours_with_what_a_number_has_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["[edsr-x2]", "psnr = { Set5 = 37.9 }", "ssim = {}", 'engine = "torch"', 'placement = "float32"']
    lines += ['budget = "9 steps"', f'sha256 = "{"ab" * 32}"']
    measured = presets.read_measured("\n".join(lines))
    monkeypatch.setattr("srquant.presets.measured", lambda: measured)
    told = run("presets")
    (row,) = [line for line in told.splitlines() if "│ edsr-x2 " in line]
    assert "- / 37.90" in row
    assert "torch; float32; 9 steps; sha256 abababababababab" in told


@pytest.mark.parametrize("name", ["edsr-x4-ddtb-w2a2", "rdn-x2"])
def test_presets_prints_the_file_of_one(name: str) -> None:
    assert run("presets", name) == presets.text(name)


def test_train_from_float_to_an_artefact(ground: Path) -> None:
    told = run("train", "float.toml", *PICTURES)
    assert re.search(r"wrote +runs/float/network.safetensors", told)
    assert "steps            6 of 6" in told
    weights = "runs/float/network.safetensors"
    told = run(
        "train", "ddtb.toml", "-o", "q", *PICTURES, "--weights", weights,
        "--set", "training.epochs=1", "--set", "quantization.weight_bits=3",
    )  # fmt: skip
    assert "steps            2 of 2" in told
    loaded = load(ground / "q" / "quantized.safetensors")
    assert isinstance(loaded, QuantizedNetwork)
    assert (loaded.quantization.weight_bits, loaded.quantization.activation_bits) == (3, 2)
    assert "weights 3, activations 2" in run("info", "q/quantized.safetensors")
    told = run("train", "official.toml", *PICTURES, "--weights", weights)
    before, _ = told.split("simulation only")
    assert "cannot be deployed: quantization.rest = 'float' ('int8' can be)" in before
    assert not list((ground / "runs" / "official").glob("*.safetensors"))


def test_train_stops_in_time_and_goes_on(ground: Path) -> None:
    told = run("train", "float.toml", *PICTURES, "--time-budget", 0)
    assert "steps            1 of 6" in told
    assert "go on with --resume" in told
    assert not (ground / "runs" / "float" / "network.safetensors").exists()
    assert "steps            6 of 6" in run("train", "float.toml", *PICTURES, "--resume")
    run("train", "float.toml", *PICTURES, "-o", "whole")
    networks = [ground / folder / "network.safetensors" for folder in ("runs/float", "whole")]
    assert networks[0].read_bytes() == networks[1].read_bytes()


def test_two_processes_train_together(ground: Path) -> None:
    command = [sys.executable, "-m", "srquant", "train", "float.toml", *PICTURES, "--devices", "2"]
    done = subprocess.run(command, cwd=ground, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert (ground / "runs" / "float" / "network.safetensors").exists()


def test_experiments_run_and_list(ground: Path) -> None:
    told = run("experiments", "list")
    assert re.search(r"010-float +│ edsr +│ float +│ +6 x 2 x 8 │ next", told)
    assert "waits for 010-float" in told
    told = run("experiments", "run", *PICTURES, "--benchmark", "SetA")
    assert told.count("finished: ") == 2
    rows = read_results(ground / "runs" / "results.csv")
    assert [row["experiment"] for row in rows] == ["010-float", "020-ddtb"]
    assert all(float(row["SetA_psnr"]) > 5 for row in rows)
    assert run("experiments", "list").count("finished") == 2
    assert run("experiments", "run", *PICTURES) == "nothing to do  no experiment is left that could run\n"


def test_experiments_alone_tells_its_commands() -> None:
    told = run("experiments")
    assert told.startswith("Usage: ")
    assert {"run", "list"} <= set(told.split())


def test_an_experiment_that_fails_is_exit_code_1(ground: Path) -> None:
    told = run("experiments", "run", "--data", "empty", "--accelerator", "cpu", code=1)
    assert told.count("failed: ") == 2
    assert "starts from '010-float', which is not trained yet" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("presets edsr-x5", "unknown preset 'edsr-x5'.*did you mean 'edsr-x"),
        ("train edsr-x5 --data pictures", "unknown preset 'edsr-x5'.*did you mean 'edsr-x"),
        ("presets foo", "unknown preset 'foo'; known: .* \\('srquant presets' lists them\\)"),
        ("train pictures --data pictures", "'pictures' is a folder; allowed: the name of a preset"),
        ("train missing.toml --data pictures", "missing.toml.*No such file"),
        ("train wrong.toml --data pictures", "wrong.toml' is no TOML file"),
        ("train float.toml", "no training pictures: name a folder .--data FOLDER"),
        ("train float.toml --data empty", "empty"),
        ("train float.toml --data pictures --validation Set5", "benchmark set"),
        ("train float.toml --data pictures --set training.epoch=3", "'training.epoch'.*did you mean 'training.epochs'"),
        ("train float.toml --data pictures --set training.epochs", "allowed is key=value"),
        ("train float.toml --data pictures --set training.epochs=0", "training.epochs = 0"),
        ("train float.toml --data pictures --set network.blocs=3", "'blocs'.*did you mean 'blocks'"),
        ("train float.toml --data pictures --accelerator gpu0", "unknown accelerator 'gpu0'; known: auto, cpu, cuda"),
        ("train float.toml --data pictures --resume", "no run to resume in 'runs/float'"),
        ("train float.toml --data pictures -o pictures", "'pictures' is not empty"),
        ("train float.toml --data pictures --devices 3 --accelerator cpu", "batch of 2 cannot be shared by 3 devices"),
        ("train ddtb.toml --data pictures", "a quantised network is trained from float weights"),
        ("train ddtb.toml --data pictures --weights missing.pth", "missing.pth.*no such file"),
        ("experiments run --folder missing", "there is no folder 'missing'"),
        ("experiments run --folder empty", "there is no experiment"),
        ("experiments run --engine onnx", "unknown engine 'onnx'.*did you mean 'onnxruntime'"),
        ("experiments list --folder missing", "there is no folder 'missing'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: str, message: str, ground: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["srquant", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert re.search(message, told.err), told.err
    assert not list(ground.glob("runs/*/network.safetensors"))


def test_ctrl_c_saves_the_run_and_says_so(
    ground: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("stopped after step 3; the run is saved")

    monkeypatch.setattr("srquant.experiments.train", interrupted)
    monkeypatch.setattr("sys.argv", ["srquant", "train", "float.toml", *PICTURES])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "warning: stopped after step 3; the run is saved\nerror: interrupted\n"


def test_help_of_training_loads_no_torch() -> None:
    check = """
import sys
from srquant.cli.app import main
for words in (["train", "--help"], ["presets"], ["presets", "edsr-x4"], ["experiments", "run", "--help"]):
    sys.argv = ["srquant", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
print([name for name in ("torch", "numpy", "lightning_fabric", "onnx") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"
