from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_quantized import float_network, noise, quantized_network

import srquant
from srquant.errors import UserError
from srquant.evaluation.scores import Evaluation, Facts, ImageScore, SetScore, evaluate_engine, facts
from srquant.files import sha256
from srquant.imaging import Picture, downscale, write_picture
from srquant.metrics import Protocol, psnr, ssim
from srquant.networks.info import NetworkInfo
from srquant.networks.loading import save_network
from srquant.progress import Silent
from srquant.quantizers import save_artefact

FACTS = Facts("m.onnx", "ab" * 32, "edsr", 2, "strict: all", {"weights": 8, "activations": 8})


class Repeat:
    """An engine that repeats pixels."""

    name = "repeat"
    halo: int | None = 0
    shape: tuple[int, int] | None = None

    def __init__(self, scale: int = 2) -> None:
        self.info = NetworkInfo(name="edsr", scale=scale, peak=255.0)

    def run(self, picture: np.ndarray) -> np.ndarray:
        scale = self.info.scale
        return picture.repeat(scale, axis=0).repeat(scale, axis=1)

    def left_in_float(self) -> list[str]:
        return []


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(pixels, None, False, None, None))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two sets: two pictures of noise beside HR/, and one flat picture in a plain folder."""
    for i in range(2):
        save(tmp_path / "noisy" / "HR" / f"p{i}.png", noise(40, 36 + i, seed=i))
    save(tmp_path / "flat" / "white.png", np.full((30, 30, 3), 255, np.uint8))
    return tmp_path


def test_scores_are_those_of_the_protocol(sets: Path) -> None:
    result = evaluate_engine(Repeat(), [sets / "noisy"], FACTS, Silent())
    assert list(result.datasets) == ["noisy"]
    assert result.engine == "repeat"
    score = result.datasets["noisy"]
    assert [image.name for image in score.images] == ["p0", "p1"]
    protocol = Protocol.standard(2)
    for i, image in enumerate(score.images):
        hr = noise(40, 36 + i, seed=i)[:, :36]
        sr = Repeat().run(downscale(hr, 2))
        assert image.psnr == psnr(sr, hr, protocol)
        assert image.ssim == ssim(sr, hr, protocol)
    assert score.psnr == pytest.approx(np.mean([i.psnr for i in score.images]), rel=1e-15)
    assert score.ssim == pytest.approx(np.mean([i.ssim for i in score.images]), rel=1e-15)
    assert result.protocol == str(protocol)


def test_the_json_file_is_as_promised(sets: Path) -> None:
    result = evaluate_engine(Repeat(), [sets / "noisy", sets / "flat"], FACTS, Silent())
    path = sets / "scores.json"
    result.save(path)
    told = json.loads(path.read_text())
    keys = ["model", "sha256", "network", "scale", "engine", "protocol", "placement", "bits", "datasets"]
    assert list(told) == keys
    assert told["model"] == "m.onnx"
    assert told["sha256"] == "ab" * 32
    assert (told["network"], told["scale"], told["engine"]) == ("edsr", 2, "repeat")
    assert told["placement"] == "strict: all"
    assert told["bits"] == {"weights": 8, "activations": 8}
    assert list(told["datasets"]) == ["noisy", "flat"]
    for name, dataset in told["datasets"].items():
        assert list(dataset) == ["psnr", "ssim", "images"]
        for image in dataset["images"]:
            assert list(image) == ["name", "psnr", "ssim"]
        assert len(dataset["images"]) == {"noisy": 2, "flat": 1}[name]
    assert told["datasets"]["noisy"]["psnr"] == result.datasets["noisy"].psnr


def test_identical_pictures_are_inf_and_never_nan(sets: Path) -> None:
    result = evaluate_engine(Repeat(), [sets / "flat"], FACTS, Silent())
    assert math.isinf(result.datasets["flat"].psnr)
    result.save(sets / "scores.json")
    text = (sets / "scores.json").read_text()
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["datasets"]["flat"]["psnr"] == "inf"
    assert told["datasets"]["flat"]["images"] == [{"name": "white", "psnr": "inf", "ssim": 1.0}]
    assert "flat inf dB / 1.0000" in str(result)


def test_one_identical_picture_makes_the_mean_inf() -> None:
    images = (ImageScore("a", math.inf, 1.0), ImageScore("b", 30.0, 0.9))
    result = Evaluation(FACTS, "repeat", "p", {"s": SetScore(math.inf, 0.95, images)})
    dataset = result.to_json()["datasets"]["s"]
    assert dataset["psnr"] == "inf"
    assert [i["psnr"] for i in dataset["images"]] == ["inf", 30.0]


def test_wrong_sets_are_refused(sets: Path) -> None:
    save(sets / "other" / "noisy" / "p.png", noise(30, 30))
    with pytest.raises(UserError, match="two benchmark sets have the same name: noisy, noisy"):
        evaluate_engine(Repeat(), [sets / "noisy", sets / "other" / "noisy"], FACTS, Silent())
    with pytest.raises(UserError, match="no benchmark set is given"):
        evaluate_engine(Repeat(), [], FACTS, Silent())
    (sets / "empty").mkdir()
    with pytest.raises(UserError):
        evaluate_engine(Repeat(), [sets / "empty"], FACTS, Silent())
    with pytest.raises(UserError, match="there is no folder"):
        evaluate_engine(Repeat(), [sets / "missing"], FACTS, Silent())
    save(sets / "small" / "p.png", noise(8, 8))
    with pytest.raises(UserError, match="too small to compare"):
        evaluate_engine(Repeat(), [sets / "small"], FACTS, Silent())


def test_saving_is_all_or_nothing(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate_engine(Repeat(), [sets / "flat"], FACTS, Silent())
    folder = sets / "out"
    folder.mkdir()
    path = folder / "scores.json"
    path.write_text("older")
    broken = Evaluation(FACTS, "repeat", "p", {"s": SetScore(math.nan, 1.0, ())})
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(path)
    assert path.read_text() == "older"
    assert [p.name for p in folder.iterdir()] == ["scores.json"]
    result.save(path)
    assert json.loads(path.read_text())["network"] == "edsr"
    assert [p.name for p in folder.iterdir()] == ["scores.json"]
    with pytest.raises(UserError, match="does not exist"):
        result.save(sets / "missing" / "scores.json")


def test_the_facts_of_every_kind_of_model(tmp_path: Path) -> None:
    plain = facts(float_network("edsr_x2"), name="n", digest=None)
    assert (plain.placement, plain.bits) == ("float32", {"weights": 32, "activations": 32})
    network = quantized_network("edsr_x2", 4)
    quantized = facts(network, name="n", digest="d")
    assert quantized.placement == str(network.placement)
    assert quantized.bits == {"weights": 4, "activations": 4}
    path = tmp_path / "a.onnx"
    srquant.export(network, path)
    exported = facts(srquant.load(path), name="n", digest="d")  # pyright: ignore[reportArgumentType]
    assert exported == quantized
    srquant.export(float_network("edsr_x2"), path)
    assert facts(srquant.load(path), name="n", digest=None) == plain


def test_facts_refuse_a_network_that_leaves_its_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(network: object) -> dict[str, int]:
        return dict.fromkeys(quantized_network("edsr_x2", 2).placement.activation_bits, 257)

    monkeypatch.setattr("srquant.evaluation.levels.level_counts", too_many)
    with pytest.raises(RuntimeError, match="uses 257 codes"):
        facts(quantized_network("edsr_x2", 2), name="n", digest=None)


def test_evaluate_names_the_file_it_scored(sets: Path) -> None:
    path = sets / "net.safetensors"
    save_network(float_network("edsr_x2"), path)
    result = srquant.evaluate(path, sets / "noisy")
    assert result.facts.model == str(path)
    assert result.facts.sha256 == sha256(path)
    assert result.engine == "torch"
    quantized = sets / "q.safetensors"
    save_artefact(quantized_network("edsr_x2"), quantized)
    results = {}
    for engine in ("simulate", "reference", "torch", "onnxruntime", "openvino"):
        results[engine] = srquant.evaluate(quantized, [sets / "noisy", sets / "flat"], engine, threads=1)
        assert results[engine].engine == engine
        assert list(results[engine].datasets) == ["noisy", "flat"]
    scores = [r.datasets["noisy"].psnr for r in results.values()]
    assert max(scores) - min(scores) < 0.01
    assert results["reference"].datasets == results["onnxruntime"].datasets
    exported = sets / "q.xml"
    srquant.export(quantized, exported, to="openvino")
    from_file = srquant.evaluate(exported, sets / "noisy", threads=1)
    parts = sha256(exported) + sha256(exported.with_suffix(".bin"))
    assert from_file.facts.sha256 == hashlib.sha256(parts.encode()).hexdigest(), "both files of the model count"
    assert from_file.datasets["noisy"] == results["openvino"].datasets["noisy"]
    in_memory = srquant.evaluate(quantized_network("edsr_x2"), str(sets / "noisy"), "reference")
    assert in_memory.facts.sha256 is None
    assert in_memory.datasets["noisy"] == results["reference"].datasets["noisy"]
