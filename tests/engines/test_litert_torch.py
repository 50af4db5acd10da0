"""The route through litert-torch: what goes to the other environment, what comes back, and what goes wrong.

An ordinary Python program stands in for that environment's interpreter: it looks at what it is given and writes a file
that repeats every pixel. The real one is used where SRQUANT_LITERT_TORCH names it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from small_quantized import float_network, noise, quantized_network, tensor
from torch import Tensor, nn
from typer.testing import CliRunner

import srquant
from srquant.cli.app import app
from srquant.config import CalibrationConfig
from srquant.engines import ExportedFile, open_engine
from srquant.engines.litert_torch import to_shape
from srquant.errors import UserError
from srquant.imaging import Picture, write_picture
from srquant.imaging.crops import Crop, calibration_crops
from srquant.integer.litert import CARD_KEY
from srquant.integer.litert_file import FileBuilder, read_model, read_text
from srquant.jobs import export_via_litert_torch
from srquant.networks import NetworkConfig, SRNetwork
from srquant.networks.cost import halo
from srquant.networks.loading import save_network
from srquant.quantizers import save_artefact
from srquant.quantizers.folding import fold

pytest.importorskip("ai_edge_litert")

SHAPE = (24, 20)

CONVERT = """
import shutil
here, folder = os.path.dirname(__file__), sys.argv[3]
for name in ("network.pt2", "pictures.npy"):
    shutil.copy(os.path.join(folder, name), here)
for name in ("network.tflite", "versions.json"):
    shutil.copy(os.path.join(here, name), folder)
print("a bar |###| 100%", file=sys.stderr)
"""
"""Keeps what it is given and "converts" it into what lies beside it."""

Grid = tuple[float, int]
PIXELS: Grid = (1.0, -128)


def program(folder: Path, body: str) -> Path:
    """An interpreter that runs `body` whatever it is to run."""
    folder.mkdir(exist_ok=True)
    path = folder / "python"
    path.write_text(f"#!{sys.executable} -S\nimport os\nimport sys\n{body}")
    path.chmod(0o755)
    return path


def converting(folder: Path, content: bytes) -> Path:
    """An interpreter that gives a file back for any network."""
    path = program(folder, CONVERT)
    (folder / "network.tflite").write_bytes(content)
    (folder / "versions.json").write_text(json.dumps({"litert-torch": "7.1", "ai-edge-quantizer": "7.2"}))
    return path


def repeating(
    kind: Literal["int8", "float32"] = "int8",
    source: Grid = PIXELS,
    target: Grid = PIXELS,
    shape: tuple[int, int] = SHAPE,
    factor: int = 2,
    inputs: int = 1,
) -> bytes:
    """A file that repeats every pixel `factor` times per side, with the grids of choice at its ends."""
    builder, (height, width) = FileBuilder(), shape

    def made(name: str, larger: int, channels: int, grid: Grid) -> int:
        scale, zero = grid if kind == "int8" else (None, 0)
        return builder.tensor(name, [1, larger * height, larger * width, channels], kind, scale, zero)

    x, many = made("args_0", 1, 3, source), made("many", 1, 3 * factor**2, source)
    y = made("output_0", factor, 3, source)
    builder.operator("CONCATENATION", [x] * factor**2, many, "ConcatenationOptions", axis=3)
    builder.operator("DEPTH_TO_SPACE", [many], y, "DepthToSpaceOptions", blockSize=factor)
    if source != target:
        y = builder.operator("QUANTIZE", [y], made("last", factor, 3, target), "QuantizeOptions")
    return builder.finish({f"args_{i}": x for i in range(inputs)}, {"output_0": y}, "made elsewhere", {"a": "b"})


@dataclass
class Told:
    """Progress that keeps what it is told."""

    started: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def start(self, name: str, total: int) -> None:
        self.started.append(f"{name} {total}")

    def advance(self) -> None:
        self.started.append("advanced")

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def finish(self) -> None:
        self.started.append("finished")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures; the first is smaller than the shape, in low resolution."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        write_picture(folder / f"p{i}.png", Picture(noise(40 + 20 * i, 50 + 10 * i, i), None, False))
    return folder


def exported(path: Path, model: Any, python: Path | str, data: Path, **options: Any) -> ExportedFile:
    export_via_litert_torch(model, path, python, data, **{"shape": SHAPE, **options})
    opened = srquant.load(path)
    assert isinstance(opened, ExportedFile)
    return opened


def repeated(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, 0).repeat(2, 1)


def quantize_operators(path: Path) -> int:
    """How many operators of a file change grids."""
    tables = read_model(path.read_bytes())
    kinds = [code.builtinCode for code in tables.operatorCodes]
    return sum(kinds[operator.opcodeIndex] == 114 for operator in tables.subgraphs[0].operators)


@pytest.mark.parametrize(("io", "changes"), [("int8", 0), ("uint8", 2)])
def test_what_comes_back_takes_and_gives_pixels(io: str, changes: int, data: Path, tmp_path: Path) -> None:
    progress = Told()
    python, network = converting(tmp_path / "env", repeating()), float_network("edsr_x2")
    model = exported(tmp_path / "a.tflite", network, python, data, io=io, images=5, progress=progress)
    assert (progress.started, progress.warned) == (["converting by litert-torch 1", "advanced", "finished"], [])
    told = model.description
    assert (told.shape, told.pictures, told.info.name, told.halo) == (SHAPE, io, "edsr", halo(network))
    assert told.unequal == ("any operation (converted by litert-torch 7.1 and ai-edge-quantizer 7.2)",)
    assert told.provenance["placement"] == "static_wi8_ai8 by litert-torch 7.1 and ai-edge-quantizer 7.2"
    assert told.provenance["calibration"]["images"] == len(told.provenance["calibration"]["pictures"]) == 5
    card = read_text(model.path, CARD_KEY) or ""
    assert "quantised by litert-torch 7.1 and ai-edge-quantizer 7.2." in card
    assert "reference on XNNPACK: not proven for any operation" in card
    (signature,) = read_model(model.path.read_bytes()).signatureDefs
    assert [entry.name for entry in (*signature.inputs, *signature.outputs)] == [b"picture", b"enlarged"]
    assert quantize_operators(model.path) == changes
    runner = open_engine(model)
    assert (runner.name, runner.shape, runner.left_in_float()) == ("litert", SHAPE, [])
    assert np.array_equal(runner.run(noise(*SHAPE)), repeated(noise(*SHAPE)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tflite", "env"]


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize(("source", "target"), [(PIXELS, (2.0, -128)), ((1.5, -120), (1.5, -120))])
def test_another_grid_at_an_end_is_brought_to_pixels(
    source: Grid, target: Grid, io: str, data: Path, tmp_path: Path
) -> None:
    python = converting(tmp_path / "env", repeating("int8", source, target))
    model = exported(tmp_path / "a.tflite", float_network("edsr_x2"), python, data, io=io)
    found = open_engine(model).run(noise(*SHAPE)).astype(int)
    assert np.abs(found - repeated(noise(*SHAPE))).max() == 1, "half a step of 1.5 or 2 grey levels, rounded"


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_operations_in_float_are_refused_or_told(io: str, data: Path, tmp_path: Path) -> None:
    python = converting(tmp_path / "env", repeating("float32"))
    path, progress = tmp_path / "a.tflite", Told()
    listed = r"2 operations in float32 \(1 CONCATENATION, 1 DEPTH_TO_SPACE\)"
    with pytest.raises(UserError, match=rf"leaves {listed}; --allow-float"):
        exported(path, float_network("edsr_x2"), python, data, io=io)
    assert not path.exists()
    model = exported(path, float_network("edsr_x2"), python, data, io=io, allow_float=True, progress=progress)
    assert re.search(listed, progress.warned[0])
    assert re.search(listed, model.description.provenance["placement"])
    runner = open_engine(model)
    assert runner.left_in_float() == ["many", "output_0"]
    assert np.array_equal(runner.run(noise(*SHAPE)), repeated(noise(*SHAPE)))


@pytest.mark.parametrize("key", ["edsr_x2", "imdn_x2", "plainusr_ultra_x2"])
def test_the_network_goes_over_in_pixels_and_unclipped(key: str, data: Path, tmp_path: Path) -> None:
    network = float_network(key)
    exported(tmp_path / "a.tflite", network, converting(tmp_path / "env", repeating()), data, images=4)
    pictures = np.load(tmp_path / "env" / "pictures.npy")
    crops = calibration_crops(data, 2, CalibrationConfig(images=4, crop=max(SHAPE)))
    assert np.array_equal(pictures, [to_shape(crop, *SHAPE).pixels for crop in crops])
    sent = torch.export.load(tmp_path / "env" / "network.pt2").module()
    with torch.no_grad():
        for picture in map(tensor, pictures):
            assert torch.allclose(sent(picture), fold(network)(picture), atol=1e-3)


class Unusual(SRNetwork[NetworkConfig]):
    """Has a normalisation that cannot be folded, between layers that srquant does not know."""

    name = "unusual"
    config_type = NetworkConfig

    def __init__(self) -> None:
        super().__init__(NetworkConfig(scale=2))
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 12, 3, padding=1)
        self.before, self.norm, self.behind = nn.Softplus(), nn.BatchNorm2d(4), nn.Softplus()
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.last(self.behind(self.norm(self.before(self.first(x))))))


def test_layers_that_srquant_does_not_know_go_over_as_they_are(data: Path, tmp_path: Path) -> None:
    network = Unusual().eval()
    with pytest.raises(UserError, match="cannot be folded"):
        fold(network)
    model = exported(tmp_path / "a.tflite", network, converting(tmp_path / "env", repeating()), data)
    assert model.description.halo is None
    picture = tensor(noise(*SHAPE))
    with torch.no_grad():
        sent = torch.export.load(tmp_path / "env" / "network.pt2").module()(picture)
        assert torch.allclose(sent, network(picture / 255) * 255, atol=1e-3)


def test_a_crop_is_cut_or_mirrored_to_the_shape() -> None:
    crop = Crop(noise(5, 9), {"file": "p.png"})
    made = to_shape(crop, 8, 6)
    assert made.record == {"file": "p.png", "brought_to": [8, 6]}
    assert np.array_equal(made.pixels[:5], crop.pixels[:, :6])
    assert np.array_equal(made.pixels[5:], crop.pixels[4:1:-1, :6])
    assert to_shape(crop, 17, 21).pixels.shape == (17, 21, 3), "mirrored more than once"


def test_few_pictures_are_warned_of(data: Path, tmp_path: Path) -> None:
    progress = Told()
    python = converting(tmp_path / "env", repeating())
    exported(tmp_path / "a.tflite", float_network("edsr_x2"), python, data, images=2, progress=progress)
    assert progress.warned == ["ranges from 2 pictures: with fewer than 5 they may be small"]


FAILURES = {
    "a traceback": (
        "print('busy'); print('a bar', file=sys.stderr); raise RuntimeError('no lowering for aten::fft')",
        "litert-torch failed: RuntimeError: no lowering for aten::fft",
    ),
    "silence": ("sys.exit(9)", "litert-torch failed: it said nothing"),
    "a package": (
        "print('a line', file=sys.stderr); print('litert-torch', file=sys.stderr); sys.exit(3)",
        r"python' has no package 'litert-torch': .*python -m pip install \"torch==\d+\.\d+\.\d+\" litert-torch ai-e",
    ),
    "a signal": ("os.kill(os.getpid(), 9)", "litert-torch failed: ended by signal 9; its last line: it said nothing"),
    "a crash of what it wrote": (
        "open(os.path.join(sys.argv[3], 'versions.json'), 'w').close()\n"
        "print('double free', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 6)",
        "LiteRT cannot run what litert-torch wrote: ended by signal 6; its last line: double free",
    ),
    "no file": ("print('done', file=sys.stderr)", "ended well but wrote no file: done"),
}

FILES = {
    "another size": (repeating(shape=(24, 22)), r"that takes \[1, 24, 22, 3\] instead of \[1, 24, 20, 3\]"),
    "another scale": (repeating(factor=1), r"that gives \[1, 24, 20, 3\] instead of \[1, 48, 40, 3\]"),
    "two pictures": (repeating(inputs=2), "wrote no LiteRT file that takes one picture and gives one"),
    "a cut file": (repeating()[:200], "wrote no LiteRT file that takes one picture and gives one"),
    "no LiteRT file": (b"no such file", "wrote no LiteRT file that takes one picture and gives one"),
}


@pytest.mark.parametrize(("body", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_line_and_leaves_the_old_file(body: str, message: str, data: Path, tmp_path: Path) -> None:
    refused(program(tmp_path / "env", body), message, data, tmp_path)


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_does_not_fit_is_refused(content: bytes, message: str, data: Path, tmp_path: Path) -> None:
    refused(converting(tmp_path / "env", content), message, data, tmp_path)


def refused(python: Path, message: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=message) as raised:
        export_via_litert_torch(float_network("edsr_x2"), path, python, data, SHAPE)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tflite", "env"]


def test_the_script_tells_what_is_missing_where_it_runs(data: Path, tmp_path: Path) -> None:
    """It runs isolated: the module of this name beside it is not mistaken for the package."""
    if find_spec("litert_torch") is not None:
        pytest.skip("litert-torch is installed here")
    with pytest.raises(UserError, match="has no package 'litert-torch': "):
        export_via_litert_torch(float_network("edsr_x2"), tmp_path / "a.tflite", sys.executable, data, SHAPE)


MISTAKES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no interpreter": (lambda place: {"python": place / "no"}, r"no Python '.*no'.*python3 -m venv litert-env; .*-m p"),
    "no program": (lambda place: {"python": place / "p0.png"}, r"no Python '.*p0.png' that could be run"),
    "a quantised network": (lambda _: {"model": quantized_network("edsr_x2")}, "only a float network can be quantised"),
    "another format": (lambda place: {"path": place / "a.onnx"}, "ends in '.tflite', not '.onnx'"),
    "a missing folder": (lambda place: {"path": place / "no" / "a.tflite"}, "does not exist"),
    "no pictures": (lambda place: {"data": place / "no"}, "no"),
    "too few images": (lambda _: {"images": 0}, "images"),
    "a shape of nothing": (lambda _: {"shape": (0, 8)}, "the shape is 0x8"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_runs(
    options: Callable[[Path], dict[str, Any]], message: str, data: Path, tmp_path: Path
) -> None:
    python = program(tmp_path / "env", "raise SystemExit('it ran')")
    usual = {"model": float_network("edsr_x2"), "path": tmp_path / "a.tflite", "python": python, "data": data}
    with pytest.raises(UserError, match=message):
        export_via_litert_torch(**{**usual, "shape": SHAPE, **options(data)})


def run(*words: object) -> tuple[int, str]:
    """Exit code and words of a command."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, f"{result.output}{result.exception or ''}"


def test_the_command_line(data: Path, tmp_path: Path) -> None:
    save_network(float_network("edsr_x2"), tmp_path / "net.safetensors")
    save_artefact(quantized_network("edsr_x2"), tmp_path / "int8.safetensors")
    net, file = tmp_path / "net.safetensors", tmp_path / "a.tflite"
    via = ("--via", "litert-torch", "--python", converting(tmp_path / "env", repeating()), "--data", data)
    code, told = run("export", net, "-o", file, *via, "--shape", "24x20", "--images", 3, "--io", "int8")
    assert code == 0, told
    assert "int8 of 24x20 (height x width) only" in told
    assert "not proven for any operation (converted by litert-torch 7.1" in told
    code, told = run("info", file)
    assert code == 0, told
    for words in ("edsr", "exported quantised network", "static_wi8_ai8 by litert-torch 7.1", "not proven for any"):
        assert words in told
    for words, message in {
        ("a.tflite", *via): "needs --python PROGRAM, --data PICTURES and --shape HxW",
        ("a.tflite", "--via", "litert-torch", "--shape", "8x8"): "needs --python PROGRAM, --data PICTURES",
        ("a.onnx", *via, "--shape", "8x8"): "writes LiteRT files (.tflite), not 'onnx'",
        ("a.tflite", "--via", "litert"): "unknown writer 'litert'; known: srquant, litert-torch; did you mean 'litert-",
        ("a.tflite", "--data", data): "--python, --data and --images go with --via litert-torch only",
        ("a.tflite", "--images", 3): "--python, --data and --images go with --via litert-torch only",
    }.items():
        code, told = run("export", net, "-o", *words)
        assert (code, message in told) == (1, True), told


@pytest.mark.slow
@pytest.mark.parametrize(("key", "real"), [("edsr_x2", set()), ("abpn_x3", set()), ("rlfn_x2", {"LEAKY_RELU"})])
def test_litert_torch_itself(key: str, real: set[str], data: Path, tmp_path: Path) -> None:
    python = os.environ.get("SRQUANT_LITERT_TORCH")
    if not python:
        pytest.skip("SRQUANT_LITERT_TORCH does not name the Python of an environment with litert-torch")
    network, progress = float_network(key), Told()
    options = {"io": "int8", "allow_float": bool(real), "progress": progress}
    model = exported(tmp_path / "a.tflite", network, python, data, **options)
    assert set(re.findall(r"\d+ ([A-Z_0-9]{4,})", " ".join(progress.warned))) == real
    tables = read_model(model.path.read_bytes())
    for index in (*tables.subgraphs[0].inputs, *tables.subgraphs[0].outputs):
        grid = tables.subgraphs[0].tensors[index].quantization
        assert (list(grid.scale), list(grid.zeroPoint)) == ([1.0], [-128])
    assert json.loads(read_text(model.path, "srquant") or "")["provenance"]["converter"].startswith("litert-torch 0.")
    picture = noise(*SHAPE, seed=9)
    with torch.no_grad():
        wanted = fold(network)(tensor(picture)).clamp(0, 255)[0].permute(1, 2, 0).numpy()
    error = float(np.square(open_engine(model, threads=1).run(picture) - wanted).mean())
    assert 10 * np.log10(255**2 / error) > 25
