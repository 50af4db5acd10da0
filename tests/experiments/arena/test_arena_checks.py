from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_arena import ARENA, ring, sitting
from small_experiments import Place, write_pictures

from srquant.errors import UserError

CALIBRATED, _, PAMS = ARENA["entry"]


def refused(folder: Path, place: Place, message: str, *benchmarks: Path, **changes: Any) -> None:
    """The arena ends in one line, and leaves nothing behind."""
    one = ring(folder / "arena", place, *benchmarks, **changes)
    with pytest.raises(UserError, match=message) as error:
        sitting(one, resume=False)
    assert "\n" not in str(error.value)
    assert not one.folder.exists()


@pytest.mark.parametrize("entry", [CALIBRATED, PAMS], ids=["calibrated", "trained"])
def test_no_picture_serves_for_two_things(entry: dict[str, Any], tmp_path: Path, place: Place) -> None:
    changes = {"entry": [entry], "arena": {"seeds": [1]}}
    same = replace(place, validation=place.pictures)
    refused(tmp_path, same, r"validation picture '.*p0\.png' is a training picture too", **changes)
    for folder, kind in ((place.pictures, "training"), (place.validation, "validation")):
        refused(tmp_path, place, rf"benchmark picture '.*p0\.png' is a {kind} picture too", folder, **changes)
    within = replace(place, pictures=place.benchmark)
    refused(tmp_path, within, "is a training picture too", place.benchmark / "HR", **changes)
    (tmp_path / "linked").symlink_to(place.validation)
    refused(tmp_path, place, "is a validation picture too", tmp_path / "linked", **changes)


def test_a_finished_arena_is_checked_too(tmp_path: Path, place: Place) -> None:
    changes: dict[str, Any] = {"entry": [CALIBRATED], "arena": {"seeds": [1]}}
    sitting(ring(tmp_path / "arena", place, **changes))
    with pytest.raises(UserError, match="is a validation picture too"):
        sitting(ring(tmp_path / "arena", place, place.validation, **changes))


def test_validation_pictures_may_lie_under_hr(tmp_path: Path, place: Place) -> None:
    write_pictures(tmp_path / "validation" / "HR", 1, seed=1)
    nested = replace(place, validation=tmp_path / "validation")
    one = ring(tmp_path / "arena", nested, entry=[CALIBRATED, PAMS], arena={"seeds": [1]})
    assert [outcome.status for outcome in sitting(one)] == ["finished"] * 3


def test_a_patch_has_to_fit_a_picture(tmp_path: Path, place: Place) -> None:
    changes: dict[str, Any] = {"entry": [PAMS], "training": {"patch": 400}}
    refused(tmp_path, place, r"3 are smaller than a patch; 800x800 pixels are needed \(patch 400 at x2\)", **changes)
    larger = {**PAMS, "training": {"patch": 400}}
    refused(tmp_path, place, "3 are smaller than a patch", entry=[PAMS, larger | {"name": "larger"}], arena=UNEQUAL)
    one = ring(tmp_path / "arena", place, entry=[CALIBRATED], arena={"seeds": [1]}, training={"patch": 400})
    assert [outcome.status for outcome in sitting(one)] == ["finished"] * 2, "nothing is trained"


UNEQUAL = {"unequal": True}


@pytest.mark.parametrize("what", ["pictures", "validation"])
def test_pictures_have_to_be_readable(what: str, tmp_path: Path, place: Place) -> None:
    folder = write_pictures(tmp_path / "bad", 2, seed=8)
    (folder / "p1.png").write_text("no picture")
    bad = replace(place, **{what: folder})
    refused(tmp_path, bad, r"p1\.png' is no readable picture", entry=[PAMS])


def test_a_set_needs_its_partners(tmp_path: Path, place: Place) -> None:
    folder = write_pictures(tmp_path / "SetB" / "HR", 2, seed=3).parent
    write_pictures(folder / "LR" / "x2", 1, seed=3)
    refused(tmp_path, place, r"p1\.png' has no partner", folder)


def test_where_the_float_network_fails_nothing_is_trained(tmp_path: Path, place: Place) -> None:
    folder = write_pictures(tmp_path / "SetB", 1, seed=3)
    (folder / "p0.png").write_text("no picture")
    outcomes = sitting(ring(tmp_path / "arena", place, folder))
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [("fp32", "failed")]
