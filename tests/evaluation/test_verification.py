from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_quantized import float_network, noise, quantized_network

import srquant
from srquant.engines import ExportedFile, installed_engines, load, open_engine
from srquant.errors import UserError
from srquant.evaluation.description import describe_model
from srquant.evaluation.verification import compare, drawn_picture, verify
from srquant.networks.loading import save_network
from srquant.progress import Silent
from srquant.quantizers import save_artefact


class Counter(Silent):
    def __init__(self) -> None:
        self.told: list[str | int] = []

    def start(self, name: str, total: int) -> None:
        self.told.append(total)

    def advance(self) -> None:
        self.told.append("step")

    def finish(self) -> None:
        self.told.append("end")


def test_verify_an_exact_network() -> None:
    progress = Counter()
    found = verify(quantized_network("edsr_x2", 2, True, "full"), progress=progress)
    assert [one.engine for one in found] == [name for name in installed_engines() if name != "reference"]
    for one in found:
        assert (one.largest, one.share, one.psnr) == (0, 0.0, math.inf), one.engine
        assert bool(one.left_in_float) == (one.engine == "simulate")
    assert progress.told == [6, *["step"] * 6, "end"]


def test_verify_takes_the_engines_and_the_picture_it_is_given() -> None:
    picture = noise(9, 8)
    (one,) = verify(quantized_network("imdn_x2"), ["onnxruntime"], picture=picture, progress=Silent())
    assert one.engine == "onnxruntime"
    assert one.largest == 0
    assert one.left_in_float


def test_compare_counts_levels_and_shares() -> None:
    engine = open_engine(quantized_network("abpn_x3"), "reference")
    picture = noise(4, 5)
    wanted = engine.run(picture).copy()
    wanted[0, 0] = np.where(wanted[0, 0] < 100, wanted[0, 0] + 7, wanted[0, 0] - 7)
    found = compare(engine, picture, wanted)
    assert found.largest == 7
    assert found.share == 3 / wanted.size
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (3 * 49 / wanted.size)))


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a float network has no integer reference: quantise it first"):
        verify(float_network("edsr_x2"), progress=Silent())
    path = tmp_path / "a.onnx"
    srquant.export(quantized_network("edsr_x2"), path)
    with pytest.raises(UserError, match="an exported file holds no reference"):
        verify(load(path), progress=Silent())
    progress = Counter()
    with pytest.raises(UserError, match="did you mean 'openvino'"):
        verify(quantized_network("edsr_x2"), ["openvin"], progress=progress)
    assert progress.told[-1] == "end"


def test_the_drawn_picture_is_always_the_same_and_reaches_all_of_the_range() -> None:
    picture = drawn_picture(3)
    assert (picture.shape, picture.dtype) == ((96, 128, 3), np.uint8)
    assert np.array_equal(picture, drawn_picture(3))
    assert len(np.unique(picture)) > 200


def test_a_description_of_every_kind_of_model(tmp_path: Path) -> None:
    plain, quantized = tmp_path / "f.safetensors", tmp_path / "q.safetensors"
    save_network(float_network("edsr_x2"), plain)
    save_artefact(quantized_network("edsr_x2", 2), quantized)
    srquant.export(quantized, tmp_path / "q.onnx")
    srquant.export(quantized, tmp_path / "q.xml", to="openvino")
    told = {path.name: dict(describe_model(load(path), path)) for path in tmp_path.iterdir() if path.suffix != ".bin"}
    for facts in told.values():
        assert (facts["network"], facts["scale"]) == ("edsr", "x2")
        assert facts["receptive field"] == "17 px (halo 8)"
    assert told["f.safetensors"]["kind"] == "float network"
    parameters = sum(p.numel() for p in float_network("edsr_x2").parameters())
    for name in ("f.safetensors", "q.safetensors"):
        assert told[name]["parameters"] == f"{parameters:,}"
        assert told[name]["MACs"].endswith("G for 320x180 -> 640x360")
    network = quantized_network("edsr_x2", 2)
    assert told["q.safetensors"]["kind"] == "quantised network"
    assert told["q.safetensors"]["bits"] == "weights 2, activations 2"
    assert told["q.safetensors"]["placement"] == str(network.placement)
    assert told["q.safetensors"]["packed weights"].startswith(f"{network.storage_bytes() / 1000:.1f} kB (float32: ")
    for name in ("q.onnx", "q.xml"):
        assert told[name]["kind"] == "exported quantised network"
        assert told[name]["placement"] == str(network.placement)
    both = sum((tmp_path / f"q{suffix}").stat().st_size for suffix in (".xml", ".bin"))
    assert told["q.xml"]["file size"] == f"{both / 1000:.1f} kB"


def test_an_exported_file_is_checked_against_its_artefact(tmp_path: Path) -> None:
    network = quantized_network("edsr_x2")
    srquant.export(network, tmp_path / "a.onnx")
    exported = load(tmp_path / "a.onnx")
    assert isinstance(exported, ExportedFile)
    found = verify(network, exported=exported, progress=Silent())
    assert [one.engine for one in found] == ["onnxruntime", "openvino"]
    assert [one.promised for one in found] == [True, False]
    assert not any(one.foreign for one in found)


def test_an_exported_file_of_another_artefact_is_told(tmp_path: Path) -> None:
    srquant.export(quantized_network("edsr_x2"), tmp_path / "a.onnx")
    exported = load(tmp_path / "a.onnx")
    assert isinstance(exported, ExportedFile)
    (one,) = verify(quantized_network("edsr_x2", 2), ["onnxruntime"], exported=exported, progress=Silent())
    assert (one.foreign, one.broken) == (True, True)
    told = {**exported.description.provenance, "version": "0.0.0"}
    older = replace(exported, description=replace(exported.description, provenance=told))
    (one,) = verify(quantized_network("edsr_x2", 2), ["onnxruntime"], exported=older, progress=Silent())
    assert (one.foreign, one.broken) == (False, True), "another srquant may tell the same artefact otherwise"


@pytest.mark.parametrize("key", ["abpn_x3", "imdn_x2", "srresnet_x4"])
def test_an_exported_file_of_another_network_is_refused(key: str, tmp_path: Path) -> None:
    srquant.export(quantized_network(key), tmp_path / "a.onnx")
    exported = load(tmp_path / "a.onnx")
    assert isinstance(exported, ExportedFile)
    name, scale = key.split("_x")
    message = rf"a.onnx' holds another network than the artefact: {name} \(scale={scale}, .*, not edsr \(scale=2, "
    with pytest.raises(UserError, match=message) as error:
        verify(quantized_network("edsr_x2"), exported=exported, progress=Silent())
    assert "\n" not in str(error.value)


def test_an_exported_float_network_is_refused(tmp_path: Path) -> None:
    srquant.export(float_network("edsr_x2"), tmp_path / "a.onnx")
    exported = load(tmp_path / "a.onnx")
    assert isinstance(exported, ExportedFile)
    with pytest.raises(UserError, match=r"a.onnx' holds a float network: verify a file that was exported from"):
        verify(quantized_network("edsr_x2"), exported=exported, progress=Silent())


def test_litert_is_promised_equal_where_every_operation_is_proven(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    for key, promised in (("abpn_x3", True), ("srresnet_x4", True), ("imdn_x2", False)):
        (one,) = verify(quantized_network(key), ["litert"], progress=Silent())
        assert one.promised == promised, key
        assert not one.broken
    network = quantized_network("edsr_x2")
    srquant.export(network, tmp_path / "a.tflite", shape=(40, 24))
    exported = load(tmp_path / "a.tflite")
    assert isinstance(exported, ExportedFile)
    for picture in (None, noise(50, 30)):  # of its own shape, and in tiles
        (one,) = verify(network, exported=exported, picture=picture, progress=Silent())
        assert (one.engine, one.largest, one.promised) == ("litert", 0, True)


@pytest.mark.parametrize("key", ["imdn_x2", "rlfn_x2"])
def test_nothing_is_promised_of_float_programs_even_with_exact_scales(key: str) -> None:
    found = verify(quantized_network(key, 8, True), progress=Silent())
    assert found
    assert [one.engine for one in found if one.promised or not one.left_in_float] == []
    assert all(one.promised for one in verify(quantized_network("abpn_x3", 8, True), progress=Silent()))


def test_a_description_of_a_litert_file(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "a.tflite"
    srquant.export(quantized_network("imdn_x2"), path, shape=(8, 10), allow_float=True)
    told = dict(describe_model(load(path), path))
    assert told["kind"] == "exported quantised network"
    assert told["pictures"] == "uint8 of 8x10 (height x width) only"
    assert told["equal to the reference"].startswith("not proven for quantizers_imdb1_cca (FloatProgram), ")
