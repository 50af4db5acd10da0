"""LiteRT against the integer reference, bit for bit, and what the engine says where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_quantized import CONFIGS, build, calibrated, float_network, noise, quantized_network

import srquant
from srquant.config import QuantizationConfig
from srquant.engines import ExportedFile, load, open_engine
from srquant.engines.litert import LiteRTEngine
from srquant.errors import UserError
from srquant.integer import lower
from srquant.integer.litert_kernels import unequal
from srquant.integer.litert_rewrites import prepare
from srquant.networks.loading import load_network
from srquant.quantizers import QuantizedNetwork, load_artefact

pytest.importorskip("ai_edge_litert")

CASES = [
    (key, bits, exact, placement)
    for key in CONFIGS
    for bits in (8, 4, 3, 2)
    for exact in (False, True)
    for placement in ("strict", "full")
    if bits != 8 or placement == "strict"
]


def exported(network: QuantizedNetwork, path: Path, **options: object) -> ExportedFile:
    srquant.export(network, path, **options)  # pyright: ignore[reportArgumentType]
    model = load(path)
    assert isinstance(model, ExportedFile)
    return model


@pytest.mark.parametrize(("key", "bits", "exact", "placement"), CASES)
def test_every_network_is_the_reference_bit_for_bit(key: str, bits: int, exact: bool, placement: str) -> None:
    network = quantized_network(key, bits, exact, placement)
    runner, truth = open_engine(network, "litert", threads=1), open_engine(network, "reference")
    assert (runner.name, runner.info, runner.halo, runner.shape) == ("litert", network.info, network.halo, None)
    assert unequal(prepare(lower(network))) == [f"{name} (FloatProgram)" for name in truth.left_in_float()]
    assert runner.left_in_float() == truth.left_in_float()
    for i, size in enumerate([(17, 23), (1, 1), (1, 9), (8, 1), (7, 2)]):
        picture = noise(*size, seed=40 + i)
        found, wanted = runner.run(picture).astype(int), truth.run(picture)
        assert found.shape == wanted.shape
        # attention is float: its result may be rounded to the neighbour
        assert np.abs(found - wanted).max() <= (2 if runner.left_in_float() else 0), size


@pytest.mark.parametrize("io", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(16, 24), (33, 9)])
@pytest.mark.parametrize("key", ["abpn_x3", "edsr_x2", "srresnet_x4", "xlsr_x3"])
def test_a_file_runs_pictures_of_its_shape(key: str, shape: tuple[int, int], io: str, tmp_path: Path) -> None:
    network = quantized_network(key)
    model = exported(network, tmp_path / "a.tflite", shape=shape, io=io)
    assert (model.description.shape, model.description.pictures, model.description.unequal) == (shape, io, ())
    for threads in (1, 2, None):
        runner = open_engine(model, threads=threads)
        assert (runner.name, runner.shape, runner.left_in_float()) == ("litert", shape, [])
        picture = noise(*shape)
        kept = runner.run(picture)
        wanted = open_engine(network, "reference").run(picture)
        assert kept.dtype == np.uint8
        assert np.array_equal(kept, wanted)
        runner.run(noise(*shape, seed=1))
        assert np.array_equal(kept, wanted), "a result outlives the next run"
    with pytest.raises(UserError, match=rf"pictures of {shape[0]}x{shape[1]} \(height x width\), not 5x6; export it w"):
        runner.run(noise(5, 6))


def test_a_network_in_memory_keeps_the_last_sizes_only() -> None:
    runner = open_engine(quantized_network("abpn_x3"), "litert", threads=1)
    assert isinstance(runner, LiteRTEngine)
    for side in (4, 5, 6, 7, 4):
        assert runner.run(noise(side, side)).shape == (3 * side, 3 * side, 3)
    assert list(runner._runs) == [(6, 6), (7, 7), (4, 4)]


def test_a_file_with_operations_in_float_says_so(tmp_path: Path) -> None:
    network = quantized_network("imdn_x2")
    with pytest.raises(UserError, match="tell the size of the pictures with --shape HxW"):
        srquant.export(network, tmp_path / "a.tflite", allow_float=True)
    with pytest.raises(UserError, match="2 operations have no integer form"):
        srquant.export(network, tmp_path / "a.tflite", shape=(8, 8))
    assert not list(tmp_path.iterdir())
    model = exported(network, tmp_path / "a.tflite", shape=(8, 8), allow_float=True)
    assert len(model.description.unequal) == 2
    assert open_engine(model).left_in_float()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_a_layer_that_is_silent_on_the_calibration_pictures_does_no_harm(at: int, exact: bool, tmp_path: Path) -> None:
    silenced = build(CONFIGS["abpn_x3"], "abpn")
    layer = [module for module in silenced.modules() if isinstance(module, torch.nn.Conv2d)][at]
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.fill_(-50.0)
    network = calibrated(silenced, QuantizationConfig(exact=exact))
    model = exported(network, tmp_path / "a.tflite", shape=(8, 9))
    assert model.description.unequal == ()
    picture = noise(8, 9)
    assert np.array_equal(open_engine(model, threads=1).run(picture), open_engine(network, "reference").run(picture))


def test_a_file_that_litert_cannot_load_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LiteRT cannot load the file"):
        srquant.export(quantized_network("abpn_x3"), tmp_path / "a.tflite", shape=(99999, 99999))
    assert not list(tmp_path.iterdir())


def test_what_litert_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the engine 'litert' runs quantised networks; this is a float one"):
        open_engine(float_network("edsr_x2"), "litert")
    with pytest.raises(UserError, match="a LiteRT file holds a quantised network, this is a float one: quantise it"):
        srquant.export(float_network("edsr_x2"), tmp_path / "a.tflite")
    model = exported(quantized_network("edsr_x2"), tmp_path / "a.tflite")
    with pytest.raises(UserError, match=r"the engine 'openvino' cannot run 'a.tflite'; litert can"):
        open_engine(model, "openvino")


@pytest.mark.parametrize("options", [{"shape": (8, 8)}, {"io": "int8"}, {"allow_float": True}])
@pytest.mark.parametrize("name", ["a.onnx", "a.xml"])
def test_options_of_litert_go_with_litert_only(name: str, options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shape, io and allow_float go with litert \(.tflite\) only, not with"):
        srquant.export(quantized_network("edsr_x2"), tmp_path / name, **options)  # pyright: ignore[reportArgumentType]


def test_a_missing_package_gives_an_install_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = quantized_network("edsr_x2")
    srquant.export(network, tmp_path / "a.tflite")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    hint = r"needs the package 'ai-edge-litert': pip install 'srquant\[litert\]'"
    for attempt in (
        lambda: open_engine(network, "litert"),
        lambda: load(tmp_path / "a.tflite"),
        lambda: srquant.export(network, tmp_path / "b.tflite"),
    ):
        with pytest.raises(UserError, match=hint):
            attempt()


def test_nothing_is_said_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    open_engine(quantized_network("edsr_x2"), "litert", threads=1).run(noise(5, 5))
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.tflite"
    srquant.export(quantized_network("edsr_x2"), path, shape=(8, 8))
    return path.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_a_user_error(where: float, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(content[: int(where * len(content))])
    with pytest.raises(UserError, match=r"is not a readable .tflite model|was cut or changed after it was written"):
        load(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
def test_a_damaged_file_is_a_user_error(where: float, flipped: int, content: bytes, tmp_path: Path) -> None:
    """Before the runtime sees it: LiteRT itself crashes on some."""
    damaged = bytearray(content)
    damaged[int(where * (len(damaged) - 64))] ^= flipped
    path = tmp_path / "a.tflite"
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match="is damaged: its checksum does not fit"):
        load(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    from srquant.integer.litert_file import FileBuilder

    builder = FileBuilder()
    x, y = (builder.tensor(name, [1, 4, 4, 3], "int8", 1.0) for name in "xy")
    builder.operator("ADD", [x, x], y, "AddOptions")
    path = tmp_path / "foreign.tflite"
    path.write_bytes(builder.finish({"x": x}, {"y": y}, "foreign", {}))
    with pytest.raises(UserError, match=r"foreign.tflite' was not exported by srquant"):
        load(path)
    path.write_bytes(builder.finish({"x": x}, {"y": y}, "foreign", {"srquant": "{}"}))
    with pytest.raises(UserError, match="describes itself in a way"):
        load(path)


@pytest.mark.parametrize("case", ["two pictures", "another rank", "float32", "another count of channels"])
def test_a_file_that_does_not_take_a_picture_is_refused(case: str) -> None:
    from srquant.engines import Description
    from srquant.integer.litert_file import FileBuilder

    builder = FileBuilder()
    shape = {"another rank": [4, 4, 3], "another count of channels": [1, 4, 4, 1]}.get(case, [1, 4, 4, 3])
    kind = "float32" if case == "float32" else "int8"
    x, z, y = (builder.tensor(name, shape, kind, None if kind == "float32" else 1.0) for name in "xzy")
    builder.operator("ADD", [x, z if case == "two pictures" else x], y, "AddOptions")
    inputs = {"x": x, "z": z} if case == "two pictures" else {"x": x}
    made = builder.finish(inputs, {"y": y}, "foreign", {})
    info = Description(quantized_network("edsr_x2").info, 8, {})
    with pytest.raises(UserError, match=r"LiteRT cannot run the file: it (does not take one picture|takes 1 channels)"):
        LiteRTEngine(made, info, 1)


# Real weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["abpn_x3", "xlsr_x3", "edsr8_x2", "srresnet8_bn_x4"])
@pytest.mark.parametrize("shape", [(24, 32), (17, 40)])
def test_real_networks_are_the_reference(name: str, shape: tuple[int, int], shared: Path, tmp_path: Path) -> None:
    weights = shared / "data" / "weights" / f"{name}.safetensors"
    if not weights.is_file():
        pytest.skip(f"no weights '{name}'")
    pictures = shared / "data" / "benchmarks" / "Set5" / "HR"
    calibration = srquant.CalibrationConfig(images=3, crop=32)
    network = srquant.quantize(load_network(weights), pictures, srquant.QuantizationConfig(equalize=False), calibration)
    srquant.save(network, tmp_path / "a.safetensors")
    network = load_artefact(tmp_path / "a.safetensors")
    model = exported(network, tmp_path / "a.tflite", shape=shape)
    assert model.description.unequal == ()
    picture = noise(*shape)
    assert np.array_equal(open_engine(model).run(picture), open_engine(network, "reference").run(picture))
