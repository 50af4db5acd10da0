from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from small_experiments import TINY, Place

from srquant.config import CalibrationConfig, NamedChoice
from srquant.errors import UserError
from srquant.experiments.arena.plan import FLOAT, Arena, contenders, open_arena
from srquant.experiments.starting import make_objective, start_network
from srquant.methods import METHODS
from srquant.settings import merged

ROOT = Path(__file__).resolve().parents[3]
TINY_EDSR = NamedChoice.model_validate({"name": "edsr", "scale": 2, **TINY["edsr"]})
SMALL: dict[str, Any] = {
    "arena": {"bits": [2, 3], "seeds": [1, 5]},
    "quantization": {"placement": "ddtb"},
    "training": {"epochs": 2, "steps_per_epoch": 3, "batch": 2, "patch": 8},
    "entry": [
        {"name": "calibrated"},
        {"name": "DDTB", "method": {"name": "ddtb", "gate": "none"}},
        {"name": "PAMS (own rate)", "method": {"name": "pams"}, "training": {"learning_rate": 1e-3}},
    ],
}


def opened(path: Path, place: Place, *, last: dict[str, Any] | None = None, **changes: Any) -> Arena:
    """The small arena with changes, `last` being one of the last entry."""
    values = merged(SMALL, changes)
    if last is not None:
        values["entry"] = [*values["entry"][:-1], {**values["entry"][-1], **last}]
    file = path / "arena.toml"
    file.write_text(tomli_w.dumps(values))
    return open_arena(file, weights=place.network, data=[place.pictures], validation=place.validation)


def test_every_entry_goes_through_all_bits_with_all_seeds(tmp_path: Path, place: Place) -> None:
    arena = opened(tmp_path, place)
    first, *others = contenders(arena)
    assert (first.entry, first.method, first.bits, first.seed, first.run) == (FLOAT, "float", 32, None, "fp32")
    names = ["calibrated", "DDTB", "PAMS (own rate)"]
    told = [(one.seed, one.bits, one.entry) for one in others]
    assert told == [(seed, bits, name) for seed in (1, 5) for bits in (2, 3) for name in names]
    assert [one.method for one in others[:3]] == ["post-training", "ddtb", "pams"]
    assert others[2].run == "pams-own-rate-2bit-seed1"
    assert len({one.run for one in others}) == len(others)
    for one in others:
        assert one.quantization is not None
        assert (one.quantization.weight_bits, one.quantization.activation_bits) == (one.bits, one.bits)
        assert one.unequal == ()
        if one.experiment is None:
            assert one.calibration == CalibrationConfig(seed=one.seed or 0)
            continue
        training = one.experiment.training
        assert (training.seed, training.epochs, training.validate_every) == (one.seed, 2, 3)
        assert training.learning_rate == (1e-3 if one.entry == "PAMS (own rate)" else 1e-4)
        assert one.experiment.network.name == "edsr"
        assert one.experiment.data.train == (str(place.pictures),)


def test_epochs_of_another_length_are_the_same_budget(tmp_path: Path, place: Place) -> None:
    arena = opened(tmp_path, place, last={"training": {"epochs": 6, "steps_per_epoch": 1}})
    last = contenders(arena)[-1]
    assert last.experiment is not None
    assert last.unequal == ()
    assert last.experiment.training.validate_every == 3, "states are chosen as often"


UNEQUAL = [
    ({"quantization": {"placement": "strict"}}, "placement = 'strict', not 'ddtb'"),
    ({"quantization": {"rest": "float"}}, "rest = 'float', not 'int8'"),
    ({"training": {"epochs": 3}}, "steps = 9, not 6"),
    ({"training": {"batch": 4}}, "batch = 4, not 2"),
    ({"training": {"patch": 9}}, "patch = 9, not 8"),
    ({"training": {"validate_every": 1}}, "validate_every = 1, not 3"),
]


@pytest.mark.parametrize(("entry", "message"), UNEQUAL, ids=[message.split()[0] for _, message in UNEQUAL])
def test_unequal_terms_are_refused_unless_they_are_wanted(
    entry: dict[str, Any], message: str, tmp_path: Path, place: Place
) -> None:
    with pytest.raises(UserError) as error:
        opened(tmp_path, place, last=entry)
    path = tmp_path / "arena.toml"
    wanted = "only equals are compared; arena.unequal = true lets it in and marks its row"
    assert str(error.value) == f"'{path}': entry 'PAMS (own rate)': {message}: {wanted}"
    arena = opened(tmp_path, place, last=entry, arena={"unequal": True})
    assert {one.entry: one.unequal for one in contenders(arena)} == {
        FLOAT: (),
        "calibrated": (),
        "DDTB": (),
        "PAMS (own rate)": (message,),
    }


@pytest.mark.parametrize(
    ("changes", "entry", "message"),
    [
        ({"arena": {"bit": [2]}}, None, "unknown ArenaRules key 'arena.bit'; .*did you mean 'arena.bits'"),
        ({"arena": {"bits": []}}, None, "arena.bits = "),
        ({"arena": {"bits": [2, 9]}}, None, "arena.bits.1 = 9: input should be less than or equal to 8"),
        ({"arena": {"bits": [2, 2]}}, None, r"arena.bits = \[2, 2\]: each may be there once"),
        ({"arena": {"seeds": [3, 3]}}, None, r"arena.seeds = \[3, 3\]: each may be there once"),
        ({"trainings": {}}, None, "unknown Arena key 'trainings'; .*did you mean 'training'"),
        ({"training": {"epoch": 3}}, None, "unknown TrainingConfig key 'training.epoch'"),
        ({"training": {"seed": 3}}, None, "training.seed is told by arena.seeds"),
        ({"calibration": {"seed": 3}}, None, "calibration.seed is told by arena.seeds"),
        ({"quantization": {"weight_bits": 3}}, None, "quantization.weight_bits is told by arena.bits"),
        ({"network": {"name": "edsir"}}, None, "': unknown network 'edsir'; .*did you mean 'edsr'"),
        ({"network": {"name": "edsr", "widht": 8}}, None, "': unknown network key 'widht'; .*did you mean 'width'"),
        ({"quantization": {"placement": "dqa"}}, None, "': unknown placement 'dqa'; .*did you mean 'daq'"),
        (
            {"network": {"name": "imdn"}},
            None,
            "entry 'calibrated': the placement 'ddtb' is defined for .* not for 'imdn'",
        ),
        ({}, {"quantization": {"placement": "dqa"}}, "entry 'PAMS .*': unknown placement 'dqa'; .*did you mean 'daq'"),
        ({"entry": []}, None, "entry = "),
        ({"entry": {"name": "DDTB"}}, None, r"entries are tables of their own: \[\[entry\]\]"),
        ({}, {"methods": {}}, "unknown ArenaEntry key 'entry 3.methods'; .*did you mean 'entry 3.method'"),
        ({}, {"method": {"name": "pam"}}, "entry 'PAMS .*': unknown method 'pam'; .*did you mean 'pams'"),
        ({}, {"method": {"name": "pams", "stk": 1}}, "entry 'PAMS .*': unknown PAMSConfig key 'method.stk'"),
        ({}, {"training": {"epoch": 3}}, "entry 'PAMS .*': unknown TrainingConfig key 'training.epoch'"),
        ({}, {"training": {"seed": 3}}, "entry 'PAMS .*': training.seed is told by arena.seeds"),
        ({}, {"quantization": {"activation_bits": 3}}, "quantization.activation_bits is told by arena.bits"),
        ({}, {"name": "PAMS/2"}, "entry 'PAMS/2': allowed in a name are"),
        ({}, {"name": "ddtb"}, "entry 'ddtb': there is 'DDTB' already"),
        ({}, {"name": "DDTB"}, "entry 'DDTB': there is 'DDTB' already"),
        ({}, {"name": "fp32"}, "entry 'fp32': there is 'FP32' already"),
        ({"quantization": {"rest": "float"}}, None, "entry 'calibrated': post-training .* 'float' needs a method"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    changes: dict[str, Any], entry: dict[str, Any] | None, message: str, tmp_path: Path, place: Place
) -> None:
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path, place, last=entry, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "own", "message"),
    [
        ({"network": {"name": "edsrx"}}, {}, "': unknown network 'edsrx'; .*did you mean 'edsr'"),
        ({"network": {"name": "edsr", "block": 2}}, {}, "': unknown network key 'block'; .*did you mean 'blocks'"),
        ({"quantization": {"placement": "dqa"}}, {}, "': unknown placement 'dqa'; .*did you mean 'daq'"),
        ({}, {"placement": "dqa"}, "entry 'calibrated': unknown placement 'dqa'; .*did you mean 'daq'"),
    ],
)
def test_what_is_only_calibrated_is_checked_as_what_is_trained(
    changes: dict[str, Any], own: dict[str, Any], message: str, tmp_path: Path, place: Place
) -> None:
    with pytest.raises(UserError, match=message):
        opened(tmp_path, place, entry=[{"name": "calibrated", "quantization": own}], **changes)


def test_an_entry_that_is_not_trained_has_no_training(tmp_path: Path, place: Place) -> None:
    entries = [{"name": "calibrated", "training": {"epochs": 3}}]
    with pytest.raises(UserError, match="entry 'calibrated': without a method it is calibrated, not trained"):
        opened(tmp_path, place, entry=entries)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("weights", "name a checkpoint"), ("data", "no training pictures"), ("validation", "no validation pictures")],
)
def test_weights_and_pictures_have_to_be_named(missing: str, message: str, tmp_path: Path, place: Place) -> None:
    file = tmp_path / "arena.toml"
    file.write_text(tomli_w.dumps(SMALL))
    given = {"weights": place.network, "data": [place.pictures], "validation": place.validation}
    with pytest.raises(UserError, match=message):
        open_arena(file, **{key: value for key, value in given.items() if key != missing})


def test_the_arenas_of_the_project(place: Place) -> None:
    files = sorted((ROOT / "experiments" / "arena").rglob("*.toml"))
    names = {
        "edsr-x2.toml",
        "edsr8-x2.toml",
        "edsr8-x2-short.toml",
        "odm-4bit-edsr8-x2.toml",
        "odm-ablation-edsr8-x2.toml",
    }
    assert {file.name for file in files} == names
    for file in files:
        arena = open_arena(file, weights=place.network, data=[place.pictures], validation=place.validation)
        methods = {one.method for one in contenders(arena)}
        if file.name.startswith("odm-"):
            assert methods == {"float", "odm"}
        else:
            assert methods >= {"float", "post-training", "ddtb", "pams", "daq", "lsq"}
            assert methods <= {"float", "post-training", *METHODS}
        for one in contenders(arena):
            if one.experiment is not None and one.seed == 1:
                small = one.experiment.model_copy(update={"network": TINY_EDSR, "weights": "scratch"})
                assert make_objective(small, start_network(small)).learns(one.experiment.training.epochs)
