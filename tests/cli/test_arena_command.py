from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import run
from small_arena import ARENA, write_arena
from small_experiments import FLOAT, experiment, write_pictures
from typer.testing import CliRunner

from srquant.cli.app import app
from srquant.experiments import train


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, float weights and an arena of one seed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 3)
    write_pictures(tmp_path / "validation", 1, seed=1)
    write_pictures(tmp_path / "SetA" / "HR", 2, seed=2)
    train(experiment(FLOAT), tmp_path / "float", data=[tmp_path / "pictures"], accelerator="cpu")
    write_arena(tmp_path / "arena.toml", arena={"seeds": [1]})
    return tmp_path


GIVEN = ("--weights", "float/network.safetensors", "--data", "pictures", "--validation", "validation")
MORE = ("--benchmark", "SetA", "--accelerator", "cpu")


def cells(told: str, entry: str) -> list[list[str]]:
    """The fields of every line of a table that begins with an entry."""
    lines = [line for line in told.splitlines() if line.startswith(f"│ {entry} ")]
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]


def test_an_arena_in_two_sittings_and_once_more(ground: Path) -> None:
    told = run("arena", "arena.toml", "-o", "out", *GIVEN, *MORE, "--time-budget", "0")
    assert re.search(r"fp32 +finished: validation [0-9.]+ dB, on torch", told)
    assert cells(told, "PAMS")[0][:4] == ["PAMS", "2", "0 of 1", "-"]
    assert "3 of 4 runs are not finished; go on with --resume" in told
    told = run("arena", "arena.toml", "-o", "out", *GIVEN, *MORE, "--resume")
    assert "pams-2bit-seed1  finished" in told
    scores, costs = cells(told, "PAMS")
    assert re.fullmatch(r"\d+\.\d{3}", scores[3])
    assert scores[-1] == "onnxruntime"
    assert costs[:3] == ["PAMS", "2", "3/3"]
    for name in ("table.md", "table.csv", "table.json", "curves.csv", "curves.png"):
        assert (ground / "out" / name).is_file()
        assert f"out/{name}" in told
    page = (ground / "out" / "table.md").read_bytes()
    again = run("arena", "arena.toml", "-o", "out", *GIVEN, *MORE)
    assert "finished:" not in again
    assert cells(again, "PAMS") == [scores, costs]
    assert (ground / "out" / "table.md").read_bytes() == page


def test_one_that_fails_gives_exit_code_1(ground: Path) -> None:
    wild = {"epochs": 20, "learning_rate": 10.0, "weight_decay": 10.0}
    entries = [entry for entry in ARENA["entry"] if entry["name"] != "DDTB"]
    write_arena(ground / "arena.toml", arena={"seeds": [1]}, training=wild, entry=entries)
    result = CliRunner().invoke(app, ["arena", "arena.toml", "-o", "out", *GIVEN, *MORE])
    assert result.exit_code == 1
    assert re.search(r"pams-2bit-seed1  failed: .*the loss is not a finite number", result.output)
    assert "1 of 3 runs are not finished" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("missing.toml", "-o", "out", *GIVEN), "cannot read 'missing.toml'"),
        (("arena.toml", "-o", "out"), "name a checkpoint"),
        (("arena.toml", "-o", "out", *GIVEN, "--engine", "onnx"), "unknown engine 'onnx'; .*mean 'onnxruntime'"),
        (("arena.toml", "-o", "out", *GIVEN, "--accelerator", "gpu"), "unknown accelerator 'gpu'"),
        (
            ("arena.toml", "-o", "out", *GIVEN, "--time-budget", "-1"),
            "--time-budget -1.0: allowed are 0 seconds or more",
        ),
        (("arena.toml", "-o", "out", *GIVEN, "--benchmark", "SetC"), "SetC"),
        (("arena.toml", "-o", "out", *GIVEN, "--benchmark", "validation"), "is a validation picture too"),
        (("large.toml", "-o", "out", *GIVEN), "3 are smaller than a patch; 800x800 pixels are needed"),
        (("arena.toml", "-o", "pictures", *GIVEN), "the folder 'pictures' is not empty and holds no arena"),
        (("arena.toml", "-o", "arena.toml", *GIVEN), "'arena.toml' is a file, not the folder of an arena"),
        (("wrong.toml", "-o", "out", *GIVEN), "unknown ArenaRules key 'arena.bit'; .*did you mean 'arena.bits'"),
    ],
)
def test_a_mistake_ends_in_one_line(
    args: tuple[str, ...], message: str, ground: Path, fails: Callable[..., str]
) -> None:
    (ground / "wrong.toml").write_text("[arena]\nbit = [2]\n[[entry]]\nname = 'PAMS'\nmethod = { name = 'pams' }\n")
    write_arena(ground / "large.toml", training={"patch": 400})
    assert re.search(message, fails("arena", *args))
    assert not (ground / "out").exists()


def test_what_is_not_there_is_told_at_once(
    ground: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srquant.engines.installed_engines", lambda: ["torch"])
    told = fails("arena", "arena.toml", "-o", "out", *GIVEN, "--engine", "litert")
    assert told == "error: the engine 'litert' is not installed; installed: torch\n"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = fails("arena", "arena.toml", "-o", "out", *GIVEN, "--accelerator", "cuda")
    assert told == "error: --accelerator cuda: PyTorch finds no CUDA device; allowed here: auto, cpu\n"
    assert not (ground / "out").exists()
