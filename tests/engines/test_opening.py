from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_quantized import float_network, noise, quantized_network
from small_trained import gated_network

import srquant
from srquant.engines import ENGINES, ExportedFile, able_engines, load, open_engine
from srquant.errors import UserError
from srquant.quantizers.deployment import deploy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 and a float EDSR, exported to both formats."""
    folder = tmp_path_factory.mktemp("exported")
    for name, model in (("int8", quantized_network("edsr_x2")), ("float", float_network("edsr_x2"))):
        srquant.export(model, folder / f"{name}.onnx")
        srquant.export(model, folder / f"{name}.xml", to="openvino")
    return folder


def test_the_names_of_the_engines() -> None:
    assert list(ENGINES) == ["simulate", "reference", "torch", "onnxruntime", "litert", "openvino"]


@pytest.mark.parametrize("kind", ["int8", "float"])
@pytest.mark.parametrize(("suffix", "engine"), [(".onnx", "onnxruntime"), (".onnx", "openvino"), (".xml", "openvino")])
def test_an_exported_file_gives_the_pixels_of_its_network(files: Path, kind: str, suffix: str, engine: str) -> None:
    network = quantized_network("edsr_x2") if kind == "int8" else float_network("edsr_x2")
    model = load(files / f"{kind}{suffix}")
    assert isinstance(model, ExportedFile)
    assert model.description.info == network.info
    runner = open_engine(model, engine, threads=1)
    assert runner.halo == 8
    direct = open_engine(network, engine, threads=1)
    for size in ((11, 9), (1, 1)):
        picture = noise(*size)
        assert np.array_equal(runner.run(picture), direct.run(picture))
    if kind == "int8":
        assert runner.left_in_float() == []
        assert model.description.provenance["network"] == "edsr"
    else:
        assert model.description.provenance == {}


def test_auto_takes_an_engine_that_runs(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_engine(float_network("edsr_x2")).name == "torch"
    assert open_engine(quantized_network("edsr_x2")).name == "openvino"
    assert open_engine(load(files / "int8.xml")).name == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_engine(quantized_network("edsr_x2")).name == "litert"
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert open_engine(quantized_network("edsr_x2")).name == "onnxruntime"
    assert open_engine(load(files / "int8.onnx")).name == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_engine(quantized_network("edsr_x2")).name == "torch"


def test_the_engines_that_can_run_a_model(files: Path) -> None:
    assert able_engines(float_network("edsr_x2")) == ["torch", "onnxruntime", "openvino"]
    assert able_engines(quantized_network("edsr_x2")) == list(ENGINES)
    assert able_engines(load(files / "int8.onnx")) == ["onnxruntime", "openvino"]
    gated = deploy(gated_network("edsr_x2"))
    assert able_engines(gated) == [name for name in ENGINES if name != "litert"]
    with pytest.raises(UserError, match=r"has gates .* which a LiteRT file cannot hold"):
        open_engine(gated, "litert")


@pytest.mark.parametrize(
    ("model", "engine", "message"),
    [
        ("float", "simulate", "runs quantised networks; this is a float one"),
        ("float", "reference", "runs quantised networks; this is a float one"),
        ("float", "onnx", "unknown engine 'onnx'; known: .*; did you mean 'onnxruntime'"),
        ("int8", "openvinno", "did you mean 'openvino'"),
        ("int8", "", "unknown engine ''"),
        ("int8.onnx", "torch", "cannot run 'int8.onnx'; onnxruntime or openvino can"),
        ("int8.onnx", "simulate", "cannot run 'int8.onnx'"),
        ("int8.xml", "onnxruntime", "cannot run 'int8.xml'; openvino can"),
        ("float.xml", "reference", "cannot run 'float.xml'; openvino can"),
    ],
)
def test_an_engine_that_cannot_run_a_model_says_so(files: Path, model: str, engine: str, message: str) -> None:
    opened = {"float": float_network("edsr_x2"), "int8": quantized_network("edsr_x2")}.get(model)
    with pytest.raises(UserError, match=message) as error:
        open_engine(opened or load(files / model), engine)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [("onnxruntime", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")]
)
def test_a_missing_runtime_gives_an_install_hint(
    engine: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package '{package}': pip install 'srquant\[{extra}\]'"):
        open_engine(quantized_network("edsr_x2"), engine)


def test_reading_an_onnx_file_without_onnx_gives_an_install_hint(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"reading an ONNX file needs the package 'onnx'"):
        load(files / "int8.onnx")


def test_a_foreign_onnx_file_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"foreign.onnx' was not exported by srquant"):
        load(path)
    for text in ("", "{}", "[]", "null", '{"info": {}, "halo": 1, "provenance": {}}', '{"info": 3}'):
        onnx.helper.set_model_props(model, {"srquant": text})
        onnx.save(model, path)
        with pytest.raises(UserError, match="describes itself in a way"):
            load(path)


def test_a_foreign_openvino_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.xml"
    path.write_text("<net><layers/></net>")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match="was not exported by srquant"):
        load(path)


def test_an_openvino_model_without_its_weights_is_refused(files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "int8.xml", tmp_path / "a.xml")
    with pytest.raises(UserError, match=r"needs its weights 'a.bin' beside it"):
        load(tmp_path / "a.xml")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["int8.onnx", "int8.xml"]))
def test_a_file_cut_anywhere_is_a_user_error(where: float, name: str, files: Path, tmp_path: Path) -> None:
    content = (files / name).read_bytes().rstrip()  # XML may do without its last line break
    path = tmp_path / name
    path.write_bytes(content[: int(where * len(content))])
    path.with_suffix(".bin").write_bytes((files / "int8.bin").read_bytes())
    with pytest.raises(UserError) as error:
        open_engine(load(path), "openvino" if path.suffix == ".xml" else "onnxruntime")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_damaged_graph_is_a_user_error(files: Path, tmp_path: Path, engine: str) -> None:
    """A file that still describes itself, but holds no graph that the runtime takes."""
    model = onnx.load(files / "int8.onnx")
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.op_type = "Covn"
    path = tmp_path / "damaged.onnx"
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"cannot load the (file|model)") as error:
        open_engine(load(path), engine)
    assert "\n" not in str(error.value)


def test_openvino_weights_of_the_wrong_length_are_a_user_error(files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "int8.xml", tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes((files / "int8.bin").read_bytes()[:100])
    with pytest.raises(UserError, match=r"OpenVINO cannot load the model: .*(size|bytes|length|file|weights)") as error:
        open_engine(load(tmp_path / "a.xml"), "openvino")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.xml", "missing.safetensors", "missing.pth"])
def test_a_missing_file_is_called_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / name)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.xml", "a.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError):
            load(tmp_path / name)


def test_the_runtime_loads_nothing_but_the_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description is plain JSON: no code of a file is run."""
    monkeypatch.setattr(builtins, "eval", lambda *_: pytest.fail("eval"))
    model = load(files / "int8.onnx")
    assert isinstance(model, ExportedFile)
    assert json.loads(json.dumps(model.description.provenance)) == model.description.provenance
