from __future__ import annotations

from pathlib import Path

import pytest
from small_experiments import FLOAT, Place, experiment, write_pictures

from srquant.errors import UserError
from srquant.experiments import Trained, train
from srquant.experiments.pictures import refuse_shared, set_pictures, training_pictures


def trained(folder: Path, pictures: Path, validation: Path) -> Trained:
    return train(experiment(FLOAT), folder, data=[pictures], validation=validation, accelerator="cpu", time_budget=0)


def test_pictures_may_lie_under_hr(tmp_path: Path, place: Place) -> None:
    write_pictures(tmp_path / "nested" / "HR", 2, seed=6)
    assert trained(tmp_path / "one", place.pictures, tmp_path / "nested").step == 1
    assert trained(tmp_path / "two", tmp_path / "nested", place.validation).step == 1


@pytest.mark.parametrize(("first", "second"), [("nested", "nested/HR"), ("nested/HR", "nested"), ("nested", "nested")])
def test_a_picture_under_hr_is_the_same_picture(first: str, second: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "nested" / "HR", 2)
    with pytest.raises(UserError, match=r"the validation picture '.*p0\.png' is a training picture too"):
        trained(tmp_path / "run", tmp_path / first, tmp_path / second)
    assert not (tmp_path / "run").exists()


def test_all_folders_are_looked_at(tmp_path: Path, place: Place) -> None:
    more = write_pictures(tmp_path / "more" / "HR", 1).parent
    pictures = training_pictures([place.pictures, more])
    assert [path.parent for path in pictures] == [place.pictures] * 3 + [more / "HR"]
    refuse_shared("benchmark", set_pictures(place.benchmark), "training", pictures)
    copy = tmp_path / "another name.png"
    copy.write_bytes((more / "HR" / "p0.png").read_bytes())
    with pytest.raises(UserError, match="another name"):
        refuse_shared("benchmark", [copy], "training", pictures)
    with pytest.raises(UserError, match=rf"the benchmark picture '{more}/HR/p0\.png' is a training picture too"):
        refuse_shared("benchmark", set_pictures(more), "training", pictures)
