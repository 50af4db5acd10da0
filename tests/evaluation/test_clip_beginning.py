"""What a clip study refuses or warns of before it begins, and that it then leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_quantized import float_network
from small_study import SETTINGS, make_place, run

from srquant.config import CalibrationConfig
from srquant.engines import Engine, Model, open_engine
from srquant.errors import UserError
from srquant.evaluation import clip_study, clip_times
from srquant.evaluation.clip_study import run_clip_study
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("beginnings"))


def test_an_unknown_engine_is_refused_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown engine 'onnxruntme'; .*did you mean 'onnxruntime'"):
        run(place, tmp_path / "study", replace(SETTINGS, engine="onnxruntme"))
    assert not (tmp_path / "study").exists()


def test_an_engine_without_its_package_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="needs the package 'openvino'"):
        run(place, tmp_path / "study", replace(SETTINGS, engine="openvino"))
    assert not (tmp_path / "study").exists()


def test_every_form_is_opened_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(model: Model, name: str, **options: Any) -> Engine:
        if isinstance(model, QuantizedNetwork) and model.quantization.clip == "keep":
            raise UserError(f"{name} knows no clip")
        return open_engine(model, name, **options)

    monkeypatch.setattr(clip_study, "open_engine", opened)
    with pytest.raises(UserError, match="torch knows no clip"):
        run(place, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_without_matplotlib_nothing_begins(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"plot of a clip study needs the package 'matplotlib': .*srquant\[plot\]"):
        run(place, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_to_draw_the_picture_is_told_before_anything_is_written(
    error: Exception, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_: int) -> np.ndarray:
        raise error

    monkeypatch.setattr(clip_times, "drawn_picture", drawn)
    with pytest.raises(UserError, match=r"too little memory to time a picture of 9x99: .*--shape"):
        run(place, tmp_path / "study", replace(SETTINGS, height=9, width=99))
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_fails_leaves_no_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> dict[str, float]:
        raise UserError("'p0' is met exactly")

    monkeypatch.setattr(clip_study, "scores", failing)
    with pytest.raises(UserError, match="is met exactly"):
        run(place, tmp_path / "deep" / "study")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_study, "quantized_variant", None)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "study"):
        with pytest.raises(UserError, match=r"cannot make the folder '.*file.*': '.*file' is no folder"):
            run(place, folder)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(UserError, match=rf"cannot make the folder '.*study': '{tmp_path}' is not writable"):
        run(place, tmp_path / "deep" / "study")


def test_pictures_that_are_scored_too_are_warned_of(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []

    class Noted(Silent):
        def warn(self, text: str) -> None:
            warnings.append(text)

    def ended(*_: object) -> None:
        raise UserError("enough")

    shutil.copytree(place / "others", tmp_path / "mixed")
    shutil.copy(place / "Set2/HR/p0.png", tmp_path / "mixed/a.png")
    monkeypatch.setattr(clip_study, "_check_engine", ended)
    pictures = [place / "others", place / "Set2/HR", tmp_path / ".." / tmp_path.name / "mixed"]
    for folder in pictures:
        with pytest.raises(UserError, match="enough"):
            run_clip_study(
                float_network("abpn_x3"),
                place / "Set2",
                folder,
                tmp_path / "study",
                replace(SETTINGS, calibration=CalibrationConfig(crop=12)),
                Noted(),
            )
    assert [text.partition(":")[0] for text in warnings] == [
        "calibrated on pictures that are scored (2 of 2)",
        "calibrated on pictures that are scored (1 of 8)",
    ]
