from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from srquant import presets
from srquant.config import Experiment
from srquant.errors import UserError

PRESETS = presets.names()
QUANTISED = [name for name in PRESETS if re.fullmatch(r".*-w\da\d", name)]
BENCHMARKS = {"Set5", "Set14", "B100", "Urban100"}


def test_every_published_row_is_there() -> None:
    networks, scales = ("edsr", "rdn", "srresnet"), ("x2", "x4")
    sesr = ("sesr-m3", "sesr-m5", "sesr-m7", "sesr-m11", "sesr-xl")
    mobile = (*sesr, "quicksrnet-small", "quicksrnet-medium", "quicksrnet-large", "ecbsr-m4c16")
    in_colour = {"sesr-m7-rgb-x2", "sesr-xl-rgb-x2"}
    assert {f"{n}-{s}" for n in networks + mobile for s in scales} | in_colour == set(PRESETS) - set(QUANTISED)
    bits = ("w2a2", "w3a3", "w4a4")
    ddtb = {f"{n}-{s}-ddtb-{b}" for n in networks for s in scales for b in bits}
    daq = {f"{n}-x4-daq-{b}" for n in networks for b in bits}
    pams = {f"edsr-x4-pams-{b}" for b in ("w2a2", "w4a4", "w8a8")} | {f"rdn-x4-pams-{b}" for b in ("w4a4", "w8a8")}
    odm = {f"{n}-{s}-odm-{b}" for n in networks for s in scales for b in bits}
    first_version = {f"{n}-x4-odm-v1-w2a2" for n in networks}
    ablation = {f"edsr-x4-odm-row-{row}-w2a2" for row in "abcd"}
    assert ddtb | daq | pams | odm | first_version | ablation == set(QUANTISED)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_says(name: str) -> None:
    experiment = presets.open_experiment(name)
    network, scale, *rest = re.sub(r"^(\w+)-.*(x\d)$", r"\1-\2", name).split("-")
    assert (experiment.network.name, f"x{experiment.network.settings['scale']}") == (network, scale)
    assert experiment.weights is None
    assert experiment.data.train == ()
    if rest:
        method, *_, bits = rest
        assert experiment.method is not None
        assert experiment.quantization is not None
        assert experiment.method.name == method
        assert f"w{experiment.quantization.weight_bits}a{experiment.quantization.activation_bits}" == bits
        assert experiment.quantization.rest == "float", "the papers leave the rest in float"
        assert experiment.paper is not None
    else:
        assert experiment.method is None
    if experiment.paper is not None:
        assert set(experiment.paper.psnr) <= BENCHMARKS
        assert set(experiment.paper.ssim) <= set(experiment.paper.psnr)
        assert all(23 < psnr < 39 for psnr in experiment.paper.psnr.values())
        assert all(0.6 < ssim < 1 for ssim in experiment.paper.ssim.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_its_network_down_to_every_key(name: str) -> None:
    from srquant.networks import NETWORKS

    experiment = presets.open_experiment(name)
    kind = NETWORKS[experiment.network.name]
    config = kind.config_type.from_dict(experiment.network.settings)
    spelt_out = set(experiment.network.settings)
    assert spelt_out == set(vars(config)), "a preset hides no key of its network"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete_and_readable(name: str) -> None:
    text = presets.text(name)
    assert text.startswith("# ")
    assert max(map(len, text.splitlines())) <= 120
    tables = tomllib.loads(text)
    assert {"network", "training"} <= set(tables)
    assert {"epochs", "steps_per_epoch", "batch", "patch", "learning_rate", "schedule", "decay_epochs", "gamma"} <= set(
        tables["training"]
    )
    assert text.isascii()


def test_the_numbers_of_ddtb() -> None:
    psnr = {name: presets.open_experiment(name).paper for name in PRESETS if "ddtb" in name}
    urban = {name: paper.psnr["Urban100"] for name, paper in psnr.items() if paper is not None}
    assert urban["edsr-x4-ddtb-w2a2"] == 24.82
    assert urban["rdn-x2-ddtb-w4a4"] == 31.76
    assert urban["srresnet-x4-ddtb-w3a3"] == 25.64
    for name, value in urban.items():
        if name.endswith("w2a2"):
            assert value < urban[name.replace("w2a2", "w3a3")] < urban[name.replace("w2a2", "w4a4")]
    percentiles = {
        name.split("-")[0]: presets.open_experiment(name).method.settings["percentile"]  # pyright: ignore[reportOptionalMemberAccess]
        for name in urban
    }
    assert percentiles == {"edsr": 99, "rdn": 95, "srresnet": 99}


def test_the_ablation_of_odm() -> None:
    rows = {row: presets.open_experiment(f"edsr-x4-odm-row-{row}-w2a2") for row in "abcd"}
    rows["e"] = presets.open_experiment("edsr-x4-odm-w2a2")
    urban = {row: experiment.paper.psnr["Urban100"] for row, experiment in rows.items() if experiment.paper}
    assert sorted(urban, key=lambda row: urban[row]) == list("abdce")
    differing = {"weight_clipping", "gate"}
    settings = {row: experiment.method.settings for row, experiment in rows.items() if experiment.method}
    assert len({tuple(own[key] for key in sorted(differing)) for own in settings.values()}) == len(rows)
    for row, experiment in rows.items():
        assert experiment.training == rows["e"].training
        same = {key: value for key, value in settings[row].items() if key not in differing}
        assert same == {key: value for key, value in settings["e"].items() if key not in differing}
    weights = {name: presets.open_experiment(name).method for name in PRESETS if "-odm-w" in name}
    assert {name.split("-")[0]: m.settings["regulariser_weight"] for name, m in weights.items() if m} == {
        "edsr": 1e-5,
        "rdn": 1e-6,
        "srresnet": 1e-5,
    }


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'edsr-x4-dtb-w2a2'; .*did you mean 'edsr-x4-ddtb-w2a2'"):
        presets.open_experiment("edsr-x4-dtb-w2a2")
    with pytest.raises(UserError, match="unknown preset 'results'"):
        presets.open_experiment("results")
    with pytest.raises(UserError, match="unknown preset"):
        presets.text("../config")
    with pytest.raises(UserError, match="'srquant presets' lists them") as caught:
        presets.open_experiment("n" * 300)
    assert len(str(caught.value)) < 500


def test_a_path_that_is_there_is_no_unknown_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").touch()
    (tmp_path / "edsr-x2").mkdir()
    with pytest.raises(UserError, match=r"' is a folder; allowed: the name of a preset, or a file that ends in .toml$"):
        presets.open_experiment(tmp_path)
    with pytest.raises(UserError, match=r"x.safetensors' is no TOML file; allowed: the name of a preset"):
        presets.open_experiment(tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    assert presets.open_experiment("edsr-x2").network.name == "edsr"


def test_words_change_a_preset() -> None:
    deployable = ["quantization.placement=ddtb", "quantization.rest=int8", "training.epochs=2"]
    changed = presets.open_experiment("edsr-x4-ddtb-w2a2", deployable)
    assert changed.quantization is not None
    assert (changed.quantization.placement, changed.quantization.rest) == ("ddtb", "int8")
    assert changed.training.epochs == 2
    with pytest.raises(UserError, match=r"unknown TrainingConfig key 'training.epoch'.*'training.epochs'"):
        presets.open_experiment("edsr-x4", ["training.epoch=2"])


def test_a_file_may_stand_on_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'preset = "edsr-x4-ddtb-w2a2"\nweights = "w.pth"\n[training]\nepochs = 5\n[method]\npercentile = 98\n'
    )
    own, below = presets.open_experiment(path, ["training.batch=4"]), presets.open_experiment("edsr-x4-ddtb-w2a2")
    assert (own.weights, own.training.epochs, own.training.batch) == ("w.pth", 5, 4)
    assert own.training.model_copy(update={"epochs": 60, "batch": 16}) == below.training
    assert (own.network, own.quantization, own.paper) == (below.network, below.quantization, below.paper)
    assert own.method is not None
    assert below.method is not None
    assert own.method.settings == {**below.method.settings, "percentile": 98}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('preset = "edsr-x5"', "own.toml': unknown preset 'edsr-x5'; .*did you mean 'edsr-x[24]'"),
        ("preset = 3", "own.toml': unknown preset '3'"),
        ("[network]\nscale = 2", "own.toml': the key 'network.name' is missing"),
        ("presets = 'edsr-x4'", "own.toml': unknown Experiment key 'presets'"),
        ("[network", "own.toml' is no TOML file"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        presets.open_experiment(tmp_path / "own.toml")
    assert "\n" not in str(error.value)


def test_measured_results_belong_to_presets() -> None:
    assert set(presets.measured()) <= set(PRESETS)


def test_a_measured_result_names_everything() -> None:
    with pytest.raises(UserError, match=r"'edsr-x4\.engine' is missing"):
        presets.read_measured("[edsr-x4]\npsnr = { Set5 = 32.0 }\nssim = {}\n")


def test_experiments_are_frozen() -> None:
    experiment = presets.open_experiment("edsr-x4")
    assert isinstance(experiment, Experiment)
    assert presets.open_experiment("edsr-x4") == experiment
