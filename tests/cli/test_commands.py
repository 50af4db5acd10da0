from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from calling import run
from PIL import Image
from small_quantized import float_network, noise, quantized_network

import srquant
from srquant.cli.app import main
from srquant.engines import load, open_engine
from srquant.imaging import Picture, read_picture, write_picture
from srquant.networks.loading import save_network
from srquant.quantizers import QuantizedNetwork, save_artefact


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float network, its artefact, exported files, a benchmark set and a folder of pictures."""
    folder = tmp_path_factory.mktemp("ready")
    save_network(float_network("edsr_x2"), folder / "net.safetensors")
    save_artefact(quantized_network("edsr_x2"), folder / "int8.safetensors")
    srquant.export(quantized_network("edsr_x2"), folder / "int8.onnx")
    srquant.export(quantized_network("edsr_x2"), folder / "int8.xml", to="openvino")
    for i in range(3):
        for place in (folder / "pictures", folder / "Set2" / "HR"):
            place.mkdir(parents=True, exist_ok=True)
            write_picture(place / f"p{i}.png", Picture(noise(36, 40, i), None, False, None, None))
    (folder / "broken.safetensors").write_bytes((folder / "net.safetensors").read_bytes()[:400])
    (folder / "broken_artefact.safetensors").write_bytes((folder / "int8.safetensors").read_bytes()[:-9])
    (folder / "broken.onnx").write_bytes(b"\x00 no model")
    (folder / "broken.xml").write_text("<net")
    (folder / "broken.bin").write_bytes(b"")
    (folder / "broken.pth").write_bytes(b"no archive")
    (folder / "empty").mkdir()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "a.png").write_bytes(b"\x89PNG no picture")
    (folder / "deep" / "HR").mkdir(parents=True)
    Image.fromarray(np.full((36, 40), 65535, np.uint16)).save(folder / "deep" / "HR" / "a.png")
    return folder


def test_networks_lists_all_families() -> None:
    told = run("networks")
    for name in ("edsr", "srresnet", "rdn", "imdn", "abpn", "xlsr"):
        assert f"{name} " in told


def test_info_of_every_kind(ready: Path) -> None:
    told = run("info", ready / "net.safetensors")
    for word in ("float network", "edsr", "x2", "parameters", "MACs", "17 px (halo 8)"):
        assert word in told
    told = run("info", ready / "int8.safetensors")
    for word in ("quantised network", "weights 8, activations 8", str(quantized_network("edsr_x2").placement), "kB"):
        assert word in told
    assert "exported quantised network" in run("info", ready / "int8.onnx")
    assert "exported quantised network" in run("info", ready / "int8.xml")


def test_quantize_writes_what_it_was_asked_for(ready: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    options = "--ranges mse --weight-bits 4 --activation-bits 3 --placement full --exact --images 2 --crop 16 --seed 5"
    told = run("quantize", ready / "net.safetensors", "-o", target, "--data", ready / "pictures", *options.split())
    assert "weights 4, activations 3" in told
    loaded = load(target)
    assert isinstance(loaded, QuantizedNetwork)
    how = loaded.quantization
    assert (how.weight_bits, how.activation_bits, how.placement, how.ranges, how.exact) == (4, 3, "full", "mse", True)
    assert len(loaded.calibration["pictures"]) == 2
    assert (loaded.calibration["seed"], loaded.calibration["crop"]) == (5, 16)
    again = tmp_path / "again.safetensors"
    run("quantize", ready / "net.safetensors", "-o", again, "--data", ready / "pictures", *options.split())
    assert again.read_bytes() == target.read_bytes()


@pytest.mark.parametrize(("to", "name"), [("onnx", "a.onnx"), ("openvino", "a.xml")])
def test_export_writes_a_file_that_runs(to: str, name: str, ready: Path, tmp_path: Path) -> None:
    told = run("export", ready / "int8.safetensors", "--to", to, "-o", tmp_path / name)
    assert str(tmp_path / name) in told
    picture = noise(5, 6)
    engine = open_engine(load(tmp_path / name), "openvino", threads=1)
    expected = open_engine(quantized_network("edsr_x2"), "openvino", threads=1).run(picture)
    assert np.array_equal(engine.run(picture), expected)


def test_verify_prints_one_row_per_engine(ready: Path) -> None:
    told = run("verify", ready / "int8.safetensors")
    for engine in ("simulate", "torch", "onnxruntime", "openvino"):
        assert f"│ {engine}" in told
    told = run("verify", ready / "int8.safetensors", "--engine", "onnxruntime", "--picture", ready / "pictures/p0.png")
    (row,) = [line for line in told.splitlines() if "onnxruntime" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "onnxruntime",
        "0",
        "0.0000 %",
        "inf",
        "0",
        "kept: equal",
    ]
    assert "openvino" not in told


def test_evaluate_prints_and_writes_scores(ready: Path, tmp_path: Path) -> None:
    report = tmp_path / "scores.json"
    told = run(
        "evaluate", ready / "int8.safetensors", "--data", ready / "Set2", ready / "pictures",
        "--engine", "onnxruntime", "--json", report, "--images", "--threads", 1,
    )  # fmt: skip
    written = json.loads(report.read_text())
    assert list(written["datasets"]) == ["Set2", "pictures"]
    assert written["engine"] == "onnxruntime"
    assert written["model"] == str(ready / "int8.safetensors")
    assert len(written["sha256"]) == 64
    for name, score in written["datasets"].items():
        (row,) = [line for line in told.splitlines() if f"│ {name} " in line]
        assert f"{score['psnr']:.3f}" in row
        assert len(score["images"]) == 3
    assert told.count("p0") == 2
    assert written["sha256"][:16] in told
    assert str(quantized_network("edsr_x2").placement) in told
    assert "shave 2 px" in told


def test_upscale_a_picture_and_a_folder(ready: Path, tmp_path: Path) -> None:
    picture = ready / "pictures" / "p0.png"
    run("upscale", picture, "-o", tmp_path / "large.png", "-m", ready / "int8.onnx", "--engine", "onnxruntime")
    expected = open_engine(quantized_network("edsr_x2"), "reference").run(read_picture(picture).rgb)
    assert np.array_equal(read_picture(tmp_path / "large.png").rgb, expected)
    run(
        "upscale", ready / "pictures", "-o", tmp_path / "all", "-m", ready / "int8.safetensors",
        "--engine", "reference", "--tile", 16, "--pattern", "{name}-{scale}{suffix}", "--suffix", ".bmp",
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["p0-2.bmp", "p1-2.bmp", "p2-2.bmp"]
    assert np.array_equal(read_picture(tmp_path / "all" / "p0-2.bmp").rgb, expected)


def test_the_version() -> None:
    assert run("--version").strip() == f"srquant {srquant.__version__}"


@pytest.mark.parametrize("command", ["networks", "info", "quantize", "export", "verify", "evaluate", "upscale"])
def test_every_command_has_help(command: str) -> None:
    told = run(command, "--help")
    assert "Usage: " in told
    assert command in told


def test_export_asks_for_no_exported_file() -> None:
    told = run("export", "--help")
    assert "Float checkpoint or quantised artefact." in told
    assert "exported file" not in told


MISTAKES: dict[str, tuple[str, str]] = {
    "info of a missing model": ("info missing.safetensors", "missing.safetensors.*no such file"),
    "info of a missing onnx file": ("info missing.onnx", "no such file"),
    "info of a folder": ("info pictures", "cannot load 'pictures': it is a folder"),
    "info of a picture": (
        "info pictures/p0.png",
        "suffix is '.png'; allowed: .safetensors, .pth, .pt, .onnx, .xml, .tflite",
    ),
    "evaluate a model without a suffix": ("evaluate nofile --data Set2", "'nofile': there is no such file"),
    "info of a cut checkpoint": ("info broken.safetensors", "broken.safetensors"),
    "info of a cut artefact": ("info broken_artefact.safetensors", "broken_artefact.safetensors"),
    "info of a broken onnx file": ("info broken.onnx", "not a readable .onnx model"),
    "info of a broken xml file": ("info broken.xml", "not a readable .xml model"),
    "info of a broken pickle": ("info broken.pth", "broken.pth"),
    "quantize a missing model": ("quantize missing.pth -o q.safetensors --data pictures", "no such file"),
    "quantize a quantised file": ("quantize int8.safetensors -o q.safetensors --data pictures", "only a float network"),
    "quantize an exported file": ("quantize int8.onnx -o q.safetensors --data pictures", "only a float network"),
    "quantize to 1 bit": (
        "quantize net.safetensors -o q.safetensors --data pictures --weight-bits 1",
        "weight_bits = 1",
    ),
    "quantize to 9 bit": (
        "quantize net.safetensors -o q.safetensors --data pictures --activation-bits 9",
        "activation_bits = 9",
    ),
    "an unknown placement": (
        "quantize net.safetensors -o q.safetensors --data pictures --placement stict",
        "unknown placement 'stict'.*did you mean 'strict'",
    ),
    "unknown ranges": (
        "quantize net.safetensors -o q.safetensors --data pictures --ranges percentil",
        "unknown range method 'percentil'.*did you mean 'percentile'",
    ),
    "no pictures to take": (
        "quantize net.safetensors -o q.safetensors --data pictures --images 0",
        "images = 0",
    ),
    "quantize with missing data": ("quantize net.safetensors -o q.safetensors --data missing", "no folder.*missing"),
    "quantize with empty data": ("quantize net.safetensors -o q.safetensors --data empty", "empty"),
    "quantize with damaged data": ("quantize net.safetensors -o q.safetensors --data damaged", "damaged/a.png"),
    "quantize into a missing folder": (
        "quantize net.safetensors -o no/q.safetensors --data pictures",
        "does not exist",
    ),
    "quantize to a wrong suffix": (
        "quantize net.safetensors -o q.pth --data pictures",
        "ends in '.safetensors', not '.pth'",
    ),
    "quantize in place": (
        "quantize net.safetensors -o ./net.safetensors --data pictures",
        "would take the place of 'net.safetensors'",
    ),
    "quantize over its calibration file": (
        "quantize net.safetensors -o q.safetensors --data pictures --save-ranges q.safetensors",
        "would take the place of 'q.safetensors'",
    ),
    "ranges in another file": (
        "quantize net.safetensors -o q.safetensors --data pictures --save-ranges x.txt",
        "a calibration file ends in .json",
    ),
    "export to an unknown format": ("export net.safetensors --to tflite -o a.tflite", "unknown format 'tflite'"),
    "export to a wrong suffix": ("export int8.safetensors --to onnx -o a.xml", "ends in '.onnx', not '.xml'"),
    "export an exported file": ("export int8.onnx -o a.onnx", "exported file already"),
    "export into a missing folder": ("export int8.safetensors -o no/a.onnx", "does not exist"),
    "export to openvino into a missing folder": ("export int8.safetensors --to openvino -o no/a.xml", "does not exist"),
    "verify a float network": ("verify net.safetensors", "no integer reference"),
    "verify an exported file": ("verify int8.onnx", "exported file"),
    "verify an unknown engine": ("verify int8.safetensors --engine onnxruntme", "did you mean 'onnxruntime'"),
    "verify with a missing picture": ("verify int8.safetensors --picture no.png", "no.png"),
    "evaluate on an unknown engine": (
        "evaluate net.safetensors --data Set2 --engine tourch",
        "unknown engine 'tourch'; known: auto, simulate, .*did you mean 'torch'",
    ),
    "evaluate on an engine that cannot": ("evaluate int8.onnx --data Set2 --engine torch", "cannot run 'int8.onnx'"),
    "evaluate a float network by simulation": ("evaluate net.safetensors --data Set2 --engine simulate", "float one"),
    "evaluate on missing data": ("evaluate net.safetensors --data missing", "no folder.*missing"),
    "evaluate on empty data": ("evaluate net.safetensors --data empty", "empty"),
    "evaluate on damaged data": ("evaluate net.safetensors --data damaged", "damaged/a.png"),
    "evaluate twice on one set": ("evaluate net.safetensors --data Set2 --data Set2", "same name"),
    "evaluate into a missing folder": (
        "evaluate net.safetensors --data Set2 --json no/scores.json",
        "does not exist",
    ),
    "upscale a missing picture": ("upscale no.png -o a.png -m int8.onnx", "no.png"),
    "upscale with a folder for a model": ("upscale pictures/p0.png -o a.png -m pictures", "'pictures': it is a folder"),
    "upscale a deep picture": ("upscale deep/HR/a.png -o a.png -m int8.onnx", "16 bits .* have it rounded: --to-8bit"),
    "evaluate on deep pictures": ("evaluate net.safetensors --data deep", "16 bits .*: convert it to 8 bit$"),
    "quantize with deep pictures": (
        "quantize net.safetensors -o q.safetensors --data deep/HR",
        "16 bits .*: convert it to 8 bit$",
    ),
    "verify with a deep picture": (
        "verify int8.safetensors --picture deep/HR/a.png",
        "16 bits .*: convert it to 8 bit$",
    ),
    "upscale with a missing model": ("upscale pictures/p0.png -o a.png -m no.onnx", "no such file"),
    "upscale to an unknown format": ("upscale pictures/p0.png -o a.gif -m int8.onnx", "'a.gif'"),
    "upscale into a missing folder": ("upscale pictures/p0.png -o no/a.png -m int8.onnx", "no"),
    "upscale a broken picture": ("upscale damaged/a.png -o a.png -m int8.onnx", "damaged/a.png"),
    "upscale with a wrong tile": ("upscale pictures/p0.png -o a.png -m int8.onnx --tile big", "tile 'big'"),
    "upscale with a tile of 0": ("upscale pictures/p0.png -o a.png -m int8.onnx --tile 0", "tile"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def playground(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ready, tmp_path_factory.mktemp("play") / "ground"))


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: str,
    message: str,
    playground: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(playground)
    monkeypatch.setattr("sys.argv", ["srquant", *arguments.split()])
    before = snapshot(playground)
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.err.endswith("\n")
    assert re.search(message, told.err), told.err
    assert snapshot(playground) == before, "a mistake must leave nothing behind"


@pytest.mark.parametrize(
    "arguments",
    ["nonsense", "quantize net.safetensors", "quantize net.safetensors -o q.safetensors --data d --weight-bits two"],
)
def test_wrong_usage_is_exit_code_2(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["srquant", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.splitlines()[-1].lower().startswith("error: ")
    assert "Traceback" not in told.err


def test_an_interruption_is_told_as_such(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*, standalone_mode: bool) -> None:
        assert not standalone_mode
        raise KeyboardInterrupt

    monkeypatch.setattr("srquant.cli.app.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_mistake_with_brackets_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["srquant", "info", "[red]no[/red].safetensors"])
    with pytest.raises(SystemExit):
        main()
    assert "'[red]no[/red].safetensors'" in capsys.readouterr().err
