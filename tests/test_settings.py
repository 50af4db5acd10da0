from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srquant.config import Experiment, TrainingConfig, build
from srquant.errors import UserError
from srquant.settings import changed, merged, read_toml, to_toml, write_toml

FULL: dict[str, Any] = {
    "weights": "float weights.safetensors",
    "network": {"name": "edsr", "scale": 4, "mean": [1.0, 2.5, 3.0], "gain": 1.0},
    "quantization": {"weight_bits": 2, "placement": "ddtb", "rest": "float"},
    "method": {"name": "ddtb", "percentile": 99.5, "gate": "official", "nested": {"a": [1, 2]}},
    "training": {"epochs": 3, "ema": 0.99, "betas": [0.5, 0.25]},
    "data": {"train": ["a b", 'c\\d "e" é'], "validation": "v"},
    "paper": {"source": "a\nb", "psnr": {"Set5": 30.97}, "ssim": {}},
}


def test_an_experiment_survives_the_way_through_a_file(tmp_path: Path) -> None:
    experiment = build(Experiment, FULL)
    write_toml(experiment, tmp_path / "e.toml")
    assert build(Experiment, read_toml(tmp_path / "e.toml")) == experiment
    assert experiment.method is not None
    assert experiment.method.settings["nested"] == {"a": [1, 2]}


@given(
    st.builds(
        TrainingConfig,
        epochs=st.integers(1, 1_000_000),
        learning_rate=st.floats(1e-300, 10),
        epsilon=st.floats(1e-300, 1),
        ema=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        seed=st.integers(0, 2**63 - 1),
        schedule=st.sampled_from(["step", "cosine", "constant"]),
    )
)
def test_every_number_survives_toml(training: TrainingConfig) -> None:
    assert build(TrainingConfig, tomllib.loads(to_toml(training))) == training


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("training.epochs=3", ("training", "epochs"), 3),
        ("training.learning_rate=1e-3", ("training", "learning_rate"), 1e-3),
        ("training.schedule=cosine", ("training", "schedule"), "cosine"),
        ('training.schedule="cosine"', ("training", "schedule"), "cosine"),
        ("training.betas=[0.5, 0.6]", ("training", "betas"), [0.5, 0.6]),
        ("data.train=[\"a\", 'b']", ("data", "train"), ["a", "b"]),
        ("weights=some/where=x.pth", ("weights",), "some/where=x.pth"),
        ("weights=010", ("weights",), "010"),
        ("weights=a\nb = 2", ("weights",), "a\nb = 2"),
        ("weights=1\nb = 2", ("weights",), "1\nb = 2"),
        ("method.dynamic=true", ("method", "dynamic"), True),
        ("new.table.key= 1 ", ("new", "table", "key"), 1),
        ('weights=""', ("weights",), ""),
        ("method.gate=none", ("method", "gate"), "none"),
    ],
)
def test_a_word_changes_one_value(word: str, path: tuple[str, ...], value: object) -> None:
    before = build(Experiment, FULL).model_dump(mode="json")
    after: Any = changed(before, [word])
    found = after
    for name in path:
        found = found[name]
    assert found == value
    assert type(found) is type(value)
    for name in set(before) - {path[0]}:
        assert after[name] == before[name]
    assert before == build(Experiment, FULL).model_dump(mode="json"), "the given data must not change"


def test_nothing_takes_a_value_out() -> None:
    after = changed(FULL, ["training.ema=", "method= ", "quantization=", "weights=", "paper.psnr=", "paper.other="])
    experiment = build(Experiment, after)
    assert (experiment.training.ema, experiment.method, experiment.quantization) == (None, None, None)
    assert experiment.weights is None
    assert FULL["training"]["ema"] == 0.99


def test_later_words_count() -> None:
    assert changed({}, ["a.b=1", "a.b=2", "a.c=3"]) == {"a": {"b": 2, "c": 3}}


@pytest.mark.parametrize("word", ["training.epochs", "=3", "training..epochs=3", ".epochs=3", ""])
def test_a_word_that_is_no_change_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"allowed is key=value, such as training.epochs=10"):
        changed(FULL, [word])


def test_a_key_inside_a_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"--set 'weights.x=1': 'weights' is 'float weights.safetensors', not a table"):
        changed(FULL, ["weights.x=1"])


def test_the_upper_tree_counts() -> None:
    below = {"a": {"x": 1, "y": {"z": 2}}, "b": 3, "c": {"d": 4}}
    above = {"a": {"y": {"w": 5}, "x": 6}, "c": 7, "e": {"f": 8}}
    assert merged(below, above) == {"a": {"x": 6, "y": {"z": 2, "w": 5}}, "b": 3, "c": 7, "e": {"f": 8}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = !", "'.*e.toml' is no TOML file: .*line 2, column 5"),
        (b"a = 1\na = 2", "'.*e.toml' is no TOML file: Cannot overwrite"),
        (b"a = '\xff'", "'.*e.toml' is no TOML file: it is not UTF-8"),
        (None, "cannot read '.*e.toml': No such file"),
    ],
)
def test_what_is_no_toml_is_told_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "e.toml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_toml(tmp_path / "e.toml")
    assert "\n" not in str(error.value)
