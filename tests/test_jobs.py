from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

import srquant
from srquant import CalibrationConfig, QuantizationConfig, UserError
from srquant.files import sha256
from srquant.imaging import Picture, downscale, read_picture, write_picture
from srquant.networks import EDSR, EDSRConfig
from srquant.networks.loading import save_network
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork

CROPS = CalibrationConfig(images=3, crop=12)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(pixels, None, False, None, None))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small EDSR and six pictures."""
    folder = tmp_path_factory.mktemp("jobs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_network(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), folder / "net.safetensors")
    for i in range(6):
        save(folder / "pictures" / f"p{i}.png", noise(50 + i, 40 + 3 * i, i))
    return folder


def artefact(place: Path, target: Path, config: CalibrationConfig = CROPS) -> bytes:
    srquant.save(srquant.quantize(place / "net.safetensors", place / "pictures", calibration=config), target)
    return target.read_bytes()


def pictures(path: Path) -> list[dict[str, object]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["srquant_artefact"])["calibration"]["pictures"]


def test_the_same_folder_and_seed_give_the_same_bytes(place: Path, tmp_path: Path) -> None:
    first = artefact(place, tmp_path / "a.safetensors")
    torch.manual_seed(123)
    np.random.seed(5)
    assert artefact(place, tmp_path / "b.safetensors") == first
    code = f"""
import srquant
from srquant import CalibrationConfig
net = srquant.quantize({str(place / "net.safetensors")!r}, {str(place / "pictures")!r},
                       calibration=CalibrationConfig(images=3, crop=12))
from pathlib import Path
srquant.save(net, Path({str(tmp_path / "c.safetensors")!r}))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "77"})
    assert (tmp_path / "c.safetensors").read_bytes() == first


def test_several_folders_give_an_equal_share_each(place: Path, tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "more" / f"q{i}.png", noise(50, 40, 10 + i))
    folders = [place / "pictures", str(tmp_path / "more")]
    config = CalibrationConfig(images=5, crop=12)
    quantized = srquant.quantize(place / "net.safetensors", folders, calibration=config)
    names = [str(record["file"]) for record in quantized.calibration["pictures"]]
    assert [name[0] for name in names] == ["p", "p", "q", "q"]
    assert quantized.calibration["images"] == 5
    warned: list[str] = []

    class Listener(Silent):
        def warn(self, text: str) -> None:
            warned.append(text)

    ranges = tmp_path / "ranges.toml"
    srquant.quantize(place / "net.safetensors", folders, calibration=config, save_ranges=ranges)
    srquant.quantize(place / "net.safetensors", folders, ranges_from=ranges, progress=Listener())
    assert warned == []
    srquant.quantize(place / "net.safetensors", folders[::-1], ranges_from=ranges, progress=Listener())
    told = f"the pictures in '{folders[1]}', '{folders[0]}' are not those that the ranges were taken from"
    assert warned == [told]
    with pytest.raises(UserError, match="give one"):
        srquant.quantize(place / "net.safetensors", [])


def test_another_seed_takes_and_records_other_crops(place: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        artefact(place, path, CalibrationConfig(images=3, crop=12, seed=seed))
    one, two = map(pictures, paths)
    assert one != two
    for told in (one, two):
        assert len(told) == 3
        for record in told:
            path = place / "pictures" / str(record["file"])
            assert record["sha256"] == sha256(path)
            top, left, height, width = record["top_left_height_width"]  # pyright: ignore[reportGeneralTypeIssues]
            assert (height, width) == (12, 12)
            high, wide, _ = read_picture(path).rgb.shape
            assert 0 <= top <= high // 2 - 12
            assert 0 <= left <= wide // 2 - 12


def test_all_pictures_are_taken_when_there_are_no_more(place: Path) -> None:
    quantized = srquant.quantize(place / "net.safetensors", place / "pictures")
    told = quantized.calibration["pictures"]
    assert [record["file"] for record in told] == [f"p{i}.png" for i in range(6)]
    # crops of 96 are larger than these pictures at half their size: they are taken whole
    assert told[1]["top_left_height_width"] == [0, 0, 25, 21]
    assert quantized.calibration["seed"] == 0


def test_low_resolution_pictures_are_not_downscaled(place: Path, tmp_path: Path) -> None:
    for i in range(2):
        high = noise(48, 48, i)
        save(tmp_path / "high" / f"p{i}.png", high)
        save(tmp_path / "low" / f"p{i}.png", downscale(high, 2))
    network = place / "net.safetensors"
    from_high = srquant.quantize(network, tmp_path / "high")
    low = srquant.quantize(network, tmp_path / "low", calibration=CalibrationConfig(low_resolution=True))
    grids = [{name: q.grid for name, q in quantized.activation_quantizers().items()} for quantized in (from_high, low)]
    assert grids[0] == grids[1]


def test_every_choice_reaches_the_network(place: Path) -> None:
    network = srquant.load(place / "net.safetensors")
    grids = {}
    for ranges in ("minmax", "percentile", "mse"):
        config = QuantizationConfig(ranges=ranges, percentile=90, activation_bits=4, placement="full")
        quantized = srquant.quantize(network, place / "pictures", config, CROPS)
        assert quantized.quantization == config
        assert not quantized.training
        grids[ranges] = tuple(q.grid for q in quantized.activation_quantizers().values())
    assert len(set(grids.values())) == 3
    exact = srquant.quantize(network, place / "pictures", QuantizationConfig(exact=True), CROPS)
    for quantizer in exact.activation_quantizers().values():
        assert quantizer.grid is not None
        assert float(np.log2(quantizer.grid.scale)).is_integer()


def test_progress_is_told_of_every_crop_and_every_layer(place: Path) -> None:
    class Counter:
        def __init__(self) -> None:
            self.told: list[object] = []

        def start(self, name: str, total: int) -> None:
            self.told += [name, total]

        def advance(self) -> None:
            self.told.append("step")

        def warn(self, text: str) -> None:
            self.told.append(text)

        def finish(self) -> None:
            self.told.append("end")

    layers = sum(isinstance(module, torch.nn.Conv2d) for module in srquant.load(place / "net.safetensors").modules())
    for ranges, passes in (("minmax", 1), ("mse", 2)):
        for equalize in (False, True):
            counter = Counter()
            config = QuantizationConfig(ranges=ranges, equalize=equalize)  # pyright: ignore[reportArgumentType]
            srquant.quantize(place / "net.safetensors", place / "pictures", config, CROPS, progress=counter)
            once = ["calibrating", 3 * passes, *["step"] * 3 * passes, "end"]
            once += ["rounding weights", layers, *["step"] * layers, "end"]
            few = "ranges from 3 of 3 pictures: with fewer than 5 they may be small"
            assert counter.told == [*once * (2 if equalize else 1), few]


def test_only_a_float_network_is_quantised(place: Path, tmp_path: Path) -> None:
    quantized = srquant.quantize(place / "net.safetensors", place / "pictures", calibration=CROPS)
    with pytest.raises(UserError, match="only a float network can be quantised"):
        srquant.quantize(quantized, place / "pictures")
    path = tmp_path / "q.safetensors"
    srquant.save(quantized, path)
    with pytest.raises(UserError, match="only a float network"):
        srquant.quantize(path, place / "pictures")
    srquant.export(quantized, tmp_path / "q.onnx")
    with pytest.raises(UserError, match="only a float network"):
        srquant.quantize(tmp_path / "q.onnx", place / "pictures")


def test_pictures_that_cannot_be_used(place: Path, tmp_path: Path) -> None:
    network = srquant.load(place / "net.safetensors")
    with pytest.raises(UserError, match="there is no folder"):
        srquant.quantize(network, tmp_path / "missing")
    with pytest.raises(UserError):
        srquant.quantize(network, tmp_path)
    save(tmp_path / "tiny.png", noise(1, 1, 0))
    with pytest.raises(UserError, match="is smaller than the scale 2"):
        srquant.quantize(network, tmp_path)
    (tmp_path / "tiny.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"tiny.png"):
        srquant.quantize(network, tmp_path)


@pytest.mark.parametrize("weight", [3e38, float("nan")])
def test_a_network_that_diverges_is_a_user_error(weight: float, place: Path) -> None:
    network = srquant.load(place / "net.safetensors")
    assert isinstance(network, EDSR)
    with torch.no_grad():
        network.get_submodule("body.0.body.0").weight.fill_(weight)  # pyright: ignore[reportCallIssue]
    for ranges in ("minmax", "percentile", "mse"):
        config = QuantizationConfig(ranges=ranges)
        with pytest.raises(UserError, match="is not finite"):
            srquant.quantize(network, place / "pictures", config, CROPS)


def test_export_refuses_what_it_cannot_write(place: Path, tmp_path: Path) -> None:
    quantized = srquant.quantize(place / "net.safetensors", place / "pictures", calibration=CROPS)
    with pytest.raises(UserError, match="unknown format 'onx'; known: onnx, openvino, litert; did you mean 'onnx'"):
        srquant.export(quantized, tmp_path / "a.onnx", to="onx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"ends in '.onnx', not '.xml'"):
        srquant.export(quantized, tmp_path / "a.xml", to="onnx")
    with pytest.raises(UserError, match=r"'.*a.bin' does not tell its format by its suffix; known: .onnx \(onnx\), "):
        srquant.export(quantized, tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"ends in '.xml', not '.onnx'"):
        srquant.export(quantized, tmp_path / "a.onnx", to="openvino")
    for name, to in (("missing/a.onnx", "onnx"), ("missing/a.xml", "openvino")):
        with pytest.raises(UserError, match=r"the folder '.*missing' does not exist"):
            srquant.export(quantized, tmp_path / name, to=to)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
    for name, to in (("f.onnx", "onnx"), ("f.xml", "openvino")):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="it is a folder"):
            srquant.export(quantized, tmp_path / name, to=to)  # pyright: ignore[reportArgumentType]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.onnx", "f.xml"]


@pytest.mark.parametrize(
    ("to", "name", "written"), [("onnx", "a.onnx", 1), ("openvino", "a.xml", 2), ("litert", "a.tflite", 1)]
)
def test_export_writes_the_same_bytes_and_nothing_else(
    to: str, name: str, written: int, place: Path, tmp_path: Path
) -> None:
    quantized = srquant.quantize(place / "net.safetensors", place / "pictures", calibration=CROPS)
    contents = []
    for _ in range(2):
        srquant.export(quantized, tmp_path / name, to=to)  # pyright: ignore[reportArgumentType]
        files = sorted(tmp_path.iterdir())
        assert len(files) == written
        contents.append([path.read_bytes() for path in files if path.suffix != ".xml"])
    assert contents[0] == contents[1]
    with pytest.raises(UserError, match="is an exported file already"):
        srquant.export(tmp_path / name, tmp_path / f"b{Path(name).suffix}", to=to)  # pyright: ignore[reportArgumentType]


def test_upscale_writes_the_engine_s_pixels(place: Path, tmp_path: Path) -> None:
    quantized = srquant.quantize(place / "net.safetensors", place / "pictures", calibration=CROPS)
    picture = place / "pictures" / "p1.png"
    written = srquant.upscale(quantized, picture, tmp_path / "large.png", engine="onnxruntime", tile=16)
    assert written == [tmp_path / "large.png"]
    expected = srquant.open_engine(quantized, "reference").run(read_picture(picture).rgb)
    assert np.array_equal(read_picture(tmp_path / "large.png").rgb, expected)
    folder = srquant.upscale(quantized, place / "pictures", tmp_path / "all", engine="torch")
    assert len(folder) == 6
    assert read_picture(folder[0]).rgb.shape == (100, 80, 3)


# Real weights, real pictures -----------------------------------------------------------------------------------

LOSS = {"abpn_x3": 0.10, "edsr8_x2": 0.10, "srresnet8_bn_x4": 0.20}
"""In dB on Set5. 0.10 is the aim; the long skip of SRResNet needs more than 8 bits to reach it."""
AGREEMENT = 0.01


def _int8(shared: Path, name: str) -> tuple[float, QuantizedNetwork]:
    """The FP32 score on Set5, and the network in INT8 by 100 crops of the training set."""
    weights, set5 = shared / "data/weights" / f"{name}.safetensors", shared / "data/benchmarks/Set5"
    quantized = srquant.quantize(weights, shared / "data/train/bsds500")
    return srquant.evaluate(weights, set5).datasets["Set5"].psnr, quantized


@pytest.mark.parametrize(
    "name", ["abpn_x3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("edsr8_x2", "srresnet8_bn_x4"))]
)
def test_int8_of_real_networks_loses_little(name: str, shared: Path) -> None:
    full, quantized = _int8(shared, name)
    set5 = shared / "data/benchmarks/Set5"
    scores = {
        engine: srquant.evaluate(quantized, set5, engine).datasets["Set5"].psnr
        for engine in ("onnxruntime", "openvino", "torch", "simulate")
    }
    assert full - scores["onnxruntime"] < LOSS[name]
    assert max(scores.values()) - min(scores.values()) < AGREEMENT, scores
