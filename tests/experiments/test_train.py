from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_experiments import DDTB, FLOAT, SIMULATED, Place, experiment, write_experiment

import srquant
from srquant import presets
from srquant.config import Experiment, build
from srquant.engines import load, open_engine
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels
from srquant.evaluation.verification import drawn_picture
from srquant.experiments import Trained, train
from srquant.files import sha256
from srquant.networks.info import SRNetwork
from srquant.networks.loading import load_network, save_network
from srquant.quantizers import QuantizedNetwork, load_artefact
from srquant.settings import read_toml
from srquant.training import TrainingData, load_checkpoint


def run(values: dict[str, Any] | Experiment, folder: Path, place: Place, **options: Any) -> Trained:
    what = values if isinstance(values, Experiment) else experiment(values)
    options = {"validation": place.validation, "accelerator": "cpu", **options}
    if what.method is not None:
        options.setdefault("weights", place.network)
    return train(what, folder, data=[place.pictures], **options)


def files(folder: Path) -> dict[str, bytes]:
    """Everything of a run that has to be the same, whatever the clock says."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_float_training_leaves_a_network(tmp_path: Path, place: Place) -> None:
    trained = run(FLOAT, tmp_path / "run", place)
    assert (trained.finished, trained.step, trained.steps) == (True, 6, 6)
    assert trained.file == tmp_path / "run" / "network.safetensors"
    assert trained.sha256 == sha256(trained.file)
    loaded, best = load(trained.file), load_checkpoint(tmp_path / "run", "best")
    assert isinstance(loaded, SRNetwork)
    assert trained.validation_psnr == best.score
    name = next(key for key in best.content["objective"] if key.endswith("head.0.weight"))
    assert loaded.state_dict()["head.0.weight"].equal(best.content["objective"][name])
    assert run(FLOAT, tmp_path / "again", place).sha256 == trained.sha256


def test_a_quantised_training_leaves_an_artefact_that_runs_as_integers(tmp_path: Path, place: Place) -> None:
    trained = run(DDTB, tmp_path / "run", place)
    assert trained.file == tmp_path / "run" / "quantized.safetensors"
    assert trained.simulated_because is None
    loaded = load(trained.file)
    assert isinstance(loaded, QuantizedNetwork)
    assert (loaded.method, loaded.quantization.weight_bits, loaded.quantization.placement) == ("ddtb", 2, "ddtb")
    check_levels(loaded)
    picture = drawn_picture(3, 12, 13)
    expected = open_engine(loaded, "reference").run(picture)
    assert expected.std() > 1
    assert np.array_equal(open_engine(loaded, "onnxruntime").run(picture), expected)


@pytest.mark.parametrize("values", [SIMULATED], ids=["the rest in float"])
def test_what_cannot_be_deployed_is_called_a_simulation(values: dict[str, Any], tmp_path: Path, place: Place) -> None:
    trained = run(values, tmp_path / "run", place)
    assert trained.finished
    assert trained.file is None
    assert trained.simulated_because is not None
    assert "rest = 'float'" in trained.simulated_because
    assert not files(tmp_path / "run")
    assert isinstance(trained.model, QuantizedNetwork)
    assert len(trained.sha256 or "") == 64


def test_the_statistics_of_an_epoch_without_steps_are_never_the_result(tmp_path: Path, place: Place) -> None:
    """In DDTB's first epoch the float network is validated, which no quantised one beats."""
    trained = run(SIMULATED, tmp_path / "run", place)
    assert isinstance(trained.model, QuantizedNetwork)
    quantizers = [q for q in trained.model.activation_quantizers().values() if not q.fixed]
    values = np.linspace(-50, 50, 999, dtype=np.float32).reshape(1, 1, 27, 37)
    assert quantizers
    rounded = [len(np.unique(_through(q, values))) for q in quantizers]
    assert max(rounded) <= 5, "2 bit, and one more at symmetric ends"


def _through(quantizer: Any, values: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return quantizer(torch.from_numpy(values).expand(1, quantizer.channels, -1, -1)).numpy()[0, 0]


def test_without_validation_the_last_state_is_the_result(tmp_path: Path, place: Place) -> None:
    trained = run(FLOAT, tmp_path / "run", place, validation=None)
    assert trained.validation_psnr is None
    assert trained.file is not None
    last = load_checkpoint(tmp_path / "run", "last")
    assert last.step == 6
    name = next(key for key in last.content["objective"] if key.endswith("head.0.weight"))
    assert load_network(trained.file).state_dict()["head.0.weight"].equal(last.content["objective"][name])


@pytest.mark.parametrize("values", [FLOAT, DDTB], ids=["float", "ddtb"])
def test_a_run_in_many_sittings_is_the_run_in_one(values: dict[str, Any], tmp_path: Path, place: Place) -> None:
    whole = run(values, tmp_path / "whole", place)
    first = run(values, tmp_path / "parts", place, time_budget=0)
    assert (first.finished, first.step, first.file) == (False, 1, None)
    sittings = 1
    while not (trained := run(values, tmp_path / "parts", place, time_budget=0, resume=True)).finished:
        sittings += 1
        assert trained.step == sittings
        assert not files(tmp_path / "parts")
    assert sittings >= 4
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert trained.validation_psnr == whole.validation_psnr
    assert run(values, tmp_path / "parts", place, resume=True).sha256 == whole.sha256, "once more changes nothing"


def test_preparing_the_pictures_counts_as_time(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: Any, **options: Any) -> object:
        time.sleep(0.6)
        return TrainingData(*given, **options)

    monkeypatch.setattr("srquant.experiments.training.TrainingData", slow)
    assert run(FLOAT, tmp_path / "run", place, time_budget=0.5).step == 1


def test_a_killed_process_goes_on(tmp_path: Path, place: Place) -> None:
    training = {"epochs": 12, "steps_per_epoch": 5, "checkpoint_every": 4}
    write_experiment(tmp_path / "own.toml", DDTB, training=training)
    words = ["train", "own.toml", "-o", "run", "--data", place.pictures, "--validation", place.validation]
    words += ["--weights", place.network, "--accelerator", "cpu"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the sums of both runs in one order
    command = [sys.executable, "-m", "srquant", *map(str, words)]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | threads)
    while not list(tmp_path.glob("run/checkpoints/last-0000000[4-9]")):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not files(tmp_path / "run")
    trained = run(experiment(DDTB, training=training), tmp_path / "run", place, resume=True)
    assert trained.finished
    run(experiment(DDTB, training=training), tmp_path / "whole", place)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_the_folder_tells_what_was_trained(tmp_path: Path, place: Place) -> None:
    run(experiment(DDTB, training={"seed": 3}), tmp_path / "run", place, time_budget=0)
    told = build(Experiment, read_toml(tmp_path / "run" / "config.toml"))
    assert told.training.seed == 3
    assert told.data.train == (str(place.pictures),)
    assert (told.weights, told.weights_sha256) == (str(place.network), sha256(place.network))
    trained = train(tmp_path / "run" / "config.toml", tmp_path / "run", resume=True, accelerator="cpu")
    assert trained.finished


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path, place: Place) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"run' is not empty: go on with its run \(--resume\) or name another"):
        run(FLOAT, tmp_path / "run", place)
    with pytest.raises(UserError, match=r"no run to resume in '.*run': it has no 'config.toml'"):
        run(FLOAT, tmp_path / "run", place, resume=True)
    with pytest.raises(UserError, match=r"no run to resume"):
        run(FLOAT, tmp_path / "other", place, resume=True)
    with pytest.raises(UserError, match=r"mine.txt' is a file"):
        run(FLOAT, tmp_path / "run" / "mine.txt", place)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"blocks": 3}}, "begun with another network: blocks = 2, not 3"),
        ({"quantization": {"weight_bits": 3}}, "begun with another quantization: weight_bits = 2, not 3"),
        ({"method": {"percentile": 95.0}}, "begun with another method: percentile = None, not 95.0"),
        ({"training": {"batch": 4}}, "begun with batch = 2, not 4"),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(
    changes: dict[str, Any], message: str, tmp_path: Path, place: Place
) -> None:
    run(DDTB, tmp_path / "run", place, time_budget=0)
    with pytest.raises(UserError, match=message) as error:
        run(experiment(DDTB, **changes), tmp_path / "run", place, resume=True)
    assert "\n" not in str(error.value)
    assert run(DDTB, tmp_path / "run", place, resume=True).finished


def test_a_run_goes_on_only_with_the_weights_it_was_begun_with(tmp_path: Path, place: Place) -> None:
    run(DDTB, tmp_path / "run", place, time_budget=0)
    other = load_network(place.network)
    other.state_dict()["head.0.weight"].mul_(2)
    save_network(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors' holds other weights") as error:
        run(DDTB, tmp_path / "run", place, resume=True, weights=tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)
    shutil.copy(place.network, tmp_path / "moved.safetensors")
    assert run(DDTB, tmp_path / "run", place, resume=True, weights=tmp_path / "moved.safetensors").finished


def test_more_epochs_go_on(tmp_path: Path, place: Place) -> None:
    run(FLOAT, tmp_path / "run", place)
    longer = experiment(FLOAT, training={"epochs": 4})
    trained = run(longer, tmp_path / "run", place, resume=True)
    assert (trained.finished, trained.step) == (True, 8)
    assert build(Experiment, read_toml(tmp_path / "run" / "config.toml")).training.epochs == 4


def test_mistakes_leave_nothing_behind(tmp_path: Path, place: Place) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "Set5").mkdir()
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"data": []}, "no training pictures: name a folder .--data FOLDER"),
        ({"data": [tmp_path / "empty"]}, "empty"),
        ({"data": [tmp_path / "missing"]}, "missing"),
        ({"validation": tmp_path / "Set5"}, "benchmark set"),
        ({"weights": tmp_path / "missing.pth"}, "missing.pth"),
        ({"devices": 3}, "cannot be shared by 3 devices"),
    ]
    for options, message in mistakes:
        every = {"data": [place.pictures], "validation": place.validation, "accelerator": "cpu", **options}
        with pytest.raises(UserError, match=message) as error:
            train(experiment(FLOAT), tmp_path / "run", **every)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["edsr-x2-ddtb-w2a2", "srresnet-x2-ddtb-w4a4", "rdn-x2-ddtb-w3a3"])
def test_what_a_preset_says_of_deployment_is_true(name: str, tmp_path: Path, place: Place) -> None:
    words = re.findall(r"--set (\S+)", presets.text(name))
    assert len(words) >= 3
    words += ["network.width=8", "network.blocks=1", "training.epochs=2", "training.steps_per_epoch=2"]
    words += ["method.gate_start_epoch=2", "method.dynamic_ratio=0.5"]
    words += ["training.batch=2", "training.patch=8", "network.layers=2"][: 3 if name.startswith("rdn") else 2]
    trained = run(presets.open_experiment(name, words), tmp_path / "run", place, weights="scratch")
    assert trained.simulated_because is None
    assert trained.file is not None
    picture = drawn_picture(3, 12, 13)
    loaded = load(trained.file)
    assert isinstance(loaded, QuantizedNetwork)
    assert loaded.gates()
    expected = open_engine(loaded, "reference").run(picture).astype(float)
    assert np.abs(open_engine(loaded, "onnxruntime").run(picture) - expected).mean() < 0.5


def test_a_preset_is_trained_by_its_name(tmp_path: Path, place: Place) -> None:
    with pytest.raises(UserError, match=r"unknown preset 'esdr-x2'"):
        train("esdr-x2", tmp_path / "run")
    with pytest.raises(UserError, match=r"holds edsr x2 \(blocks 2, width 8.* says edsr x2 \(blocks 16, width 64"):
        train("edsr-x2-ddtb-w2a2", tmp_path / "run", data=[place.pictures], weights=place.network)
    assert srquant.train is train


def test_a_refused_resumption_leaves_the_settings_as_they_were(tmp_path: Path, place: Place) -> None:
    folder = tmp_path / "run"
    run(FLOAT, folder, place, time_budget=0.0)
    before = (folder / "config.toml").read_text()
    with pytest.raises(UserError, match="learning_rate"):
        run(experiment(FLOAT, training={"learning_rate": 0.5}), folder, place, resume=True)
    assert (folder / "config.toml").read_text() == before


def test_training_pictures_do_not_validate(tmp_path: Path, place: Place) -> None:
    with pytest.raises(UserError, match="is a training picture too"):
        run(FLOAT, tmp_path / "run", place, validation=place.pictures)
    assert not (tmp_path / "run").exists()


def test_an_artefact_says_how_it_was_trained(tmp_path: Path, place: Place) -> None:
    trained = run(DDTB, tmp_path / "run", place)
    assert trained.file is not None
    told = load_artefact(trained.file).training_facts
    assert (told["method"], told["gate"], told["batch"], told["seed"]) == ("ddtb", "none", 2, 1)
    assert told["validation_psnr"] == trained.validation_psnr
