from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_arena import ARENA, ring, sitting
from small_experiments import FLOAT, Place, experiment, write_pictures

from srquant.errors import UserError
from srquant.experiments import Trained, train
from srquant.experiments.scoring import engine_of, kept_score, score
from srquant.imaging import Picture, downscale, read_picture, write_picture
from srquant.progress import Silent


@pytest.fixture
def trained(tmp_path: Path, place: Place) -> Trained:
    return train(experiment(FLOAT), tmp_path / "run", data=[place.pictures], accelerator="cpu")


@pytest.fixture
def benchmark_set(tmp_path: Path) -> Path:
    """Two pictures with LR partners."""
    folder = write_pictures(tmp_path / "SetB" / "HR", 2, seed=3).parent
    (folder / "LR" / "x2").mkdir(parents=True)
    for path in (folder / "HR").iterdir():
        low = downscale(read_picture(path).rgb, 2)
        write_picture(folder / "LR" / "x2" / path.name, Picture(low, None, False, None, None))
    return folder


def scored(trained: Trained, benchmark: Path) -> dict[str, Any]:
    told = score(trained, benchmark, "auto", Silent())
    assert kept_score(trained, benchmark, "auto") == told
    return told


def test_a_score_is_kept_with_the_digest_of_its_pictures(trained: Trained, benchmark_set: Path) -> None:
    told = scored(trained, benchmark_set)
    assert len(told["pictures"]) == 64
    assert json.loads((trained.folder / "scores" / "SetB.json").read_text()) == told
    elsewhere = benchmark_set.parent / "elsewhere" / "SetB"
    elsewhere.parent.mkdir()
    benchmark_set.rename(elsewhere)
    assert kept_score(trained, elsewhere, "auto") == told


@pytest.mark.parametrize("part", ["HR", "LR/x2"])
def test_a_score_on_other_pictures_does_not_count(part: str, trained: Trained, benchmark_set: Path) -> None:
    first = scored(trained, benchmark_set)
    path = benchmark_set / part / "p0.png"
    write_picture(path, Picture(255 - read_picture(path).rgb // 3, None, False, None, None))
    assert kept_score(trained, benchmark_set, "auto") is None
    assert scored(trained, benchmark_set)["pictures"] != first["pictures"]


def test_a_score_without_partners_of_its_own_is_another_one(trained: Trained, benchmark_set: Path) -> None:
    scored(trained, benchmark_set)
    (benchmark_set / "LR").rename(benchmark_set / "elsewhere")
    assert kept_score(trained, benchmark_set, "auto") is None


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_file_that_is_no_score_does_not_count(content: str, trained: Trained, benchmark_set: Path) -> None:
    scored(trained, benchmark_set)
    (trained.folder / "scores" / "SetB.json").write_text(content)
    assert kept_score(trained, benchmark_set, "auto") is None


def test_a_set_that_lost_a_partner_is_named(trained: Trained, benchmark_set: Path) -> None:
    scored(trained, benchmark_set)
    (benchmark_set / "LR" / "x2" / "p0.png").unlink()
    with pytest.raises(UserError, match=r"p0\.png' has no partner"):
        kept_score(trained, benchmark_set, "auto")


def test_an_arena_scores_again_on_other_pictures(tmp_path: Path, place: Place) -> None:
    sets = [write_pictures(tmp_path / str(seed) / "SetB", 1, seed=seed) for seed in (4, 5)]
    first, second = (
        ring(tmp_path / "arena", place, folder, arena={"seeds": [1]}, entry=ARENA["entry"][:1]) for folder in sets
    )
    sitting(first)
    file = first.folder / "runs" / "calibrated-2bit-seed1" / "scores" / "SetB.json"
    before = json.loads(file.read_text())
    assert sitting(first) == []
    assert [outcome.status for outcome in sitting(second)] == ["finished", "finished"]
    after = json.loads(file.read_text())
    assert after["sha256"] == before["sha256"]
    assert after["datasets"] != before["datasets"]


def test_what_cannot_be_deployed_is_simulated() -> None:
    assert engine_of("openvino", quantized=False, simulated=False) == "torch"
    assert engine_of("openvino", quantized=True, simulated=True) == "simulate"
    assert engine_of("openvino", quantized=True, simulated=False) == "openvino"
    assert engine_of("auto", quantized=True, simulated=False) == "onnxruntime"
