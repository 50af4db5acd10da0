from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import SCALE, Told, TrainingFolders, small_config, write_small_picture

from srquant.errors import UserError
from srquant.imaging import Picture, write_picture
from srquant.imaging.colour import luma
from srquant.training import TrainingData


def test_a_batch_is_a_pure_function_of_seed_and_step(folders: TrainingFolders) -> None:
    config = small_config()
    first, second = folders.data(config), folders.data(config)
    wanted = {step: first.batch(step) for step in (1, 2, 7)}
    for step in (7, 1, 2, 7):
        for part, again in zip(wanted[step], second.batch(step), strict=True):
            assert torch.equal(part, again)
    assert not torch.equal(wanted[1].low, wanted[2].low)
    assert not torch.equal(wanted[1].low, folders.data(small_config(seed=2)).batch(1).low)
    assert (wanted[1].low.shape, wanted[1].high.shape) == ((4, 8, 8, 3), (4, 16, 16, 3))
    assert wanted[1].low.dtype == wanted[1].high.dtype == torch.uint8


def test_the_shares_of_all_devices_join_to_the_batch(folders: TrainingFolders) -> None:
    data = folders.data(small_config())
    whole, shares = data.batch(5), [data.batch(5, range(0, 2)), data.batch(5, range(2, 4))]
    for index in (0, 1):
        assert torch.equal(torch.cat([share[index] for share in shares]), whole[index])


def test_prefetched_batches_are_those_asked_for(folders: TrainingFolders) -> None:
    data = folders.data(small_config())
    with data.batches(3, 9, range(1, 3), pinned=False) as batches:
        got = list(batches)
    assert len(got) == 7
    for step, batch in enumerate(got, start=3):
        assert torch.equal(batch.high, data.batch(step, range(1, 3)).high)


def test_patches_are_pairs(tmp_path: Path) -> None:
    """Flat pictures give flat patches of the same colour, LR as HR."""
    (tmp_path / "p").mkdir()
    for colour in (10, 200):
        write_picture(tmp_path / "p" / f"{colour}.png", Picture(np.full((40, 40, 3), colour, np.uint8)))
    low, high = TrainingData([tmp_path / "p"], SCALE, small_config(batch=16), cache=tmp_path / "c").batch(1)
    colours = low[:, 0, 0, 0]
    assert set(colours.tolist()) == {10, 200}
    assert (low == colours.view(-1, 1, 1, 1)).all()
    assert (high == colours.view(-1, 1, 1, 1)).all()


def test_several_folders_and_a_nested_one(folders: TrainingFolders) -> None:
    (folders.root / "nested" / "HR").mkdir(parents=True)
    write_small_picture(folders.root / "nested" / "HR" / "n.png", 40, 40, seed=9)
    both = [folders.train, folders.root / "nested"]
    assert len(TrainingData(both, SCALE, small_config(), cache=folders.cache)) == 5


def test_small_pictures_are_left_out_and_counted(folders: TrainingFolders) -> None:
    write_small_picture(folders.train / "small.png", 15, 60, seed=0)
    write_small_picture(folders.train / "exact.png", 16, 17, seed=0)
    told = Told()
    data = folders.data(small_config(), told)
    assert len(data) == 5
    assert told.warnings == [f"left out: 1 of 6 pictures in '{folders.train}' below 16x16 pixels"]
    assert told.tasks == ["preparing pictures: 6"]
    assert told.steps == 6


def test_folders_without_use_are_refused(folders: TrainingFolders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable picture in '.*train'.*400x400 pixels are needed"):
        folders.data(small_config(patch=200))
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no pictures in"), (tmp_path / "missing", "there is no folder")):
        with pytest.raises(UserError, match=message):
            TrainingData([folder], SCALE, small_config(), cache=folders.cache)
    with pytest.raises(UserError, match="no folder"):
        TrainingData([], SCALE, small_config(), cache=folders.cache)


def test_an_unreadable_picture_is_refused_or_skipped(folders: TrainingFolders) -> None:
    (folders.train / "p1.png").write_bytes((folders.train / "p0.png").read_bytes()[:300])
    with pytest.raises(UserError, match=r"p1\.png"):
        folders.data(small_config())
    told = Told()
    assert len(folders.data(small_config(unreadable="skip"), told)) == 3
    assert len(told.warnings) == 1
    assert "p1.png" in told.warnings[0]


def test_a_transparent_picture_counts_as_unreadable(folders: TrainingFolders) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    write_picture(folders.train / "t.png", Picture(pixels, alpha=np.zeros((40, 40), np.uint8)))
    with pytest.raises(UserError, match=r"t\.png.*transparent"):
        folders.data(small_config())


def break_picture(folders: TrainingFolders, name: str, *, delete: bool) -> None:
    shutil.rmtree(folders.cache)
    folders.cache.mkdir()
    if delete:
        (folders.train / name).unlink()
    else:
        (folders.train / name).write_bytes(b"no picture")


@pytest.mark.parametrize("delete", [True, False])
def test_a_picture_that_breaks_while_training_is_refused_or_skipped(folders: TrainingFolders, delete: bool) -> None:
    data = folders.data(small_config())
    told = Told()
    lenient = folders.data(small_config(unreadable="skip"), told)
    whole = [folders.data(small_config()).batch(step) for step in range(1, 20)]
    break_picture(folders, "p2.png", delete=delete)
    with pytest.raises(UserError, match=r"p2\.png"):
        [data.batch(step) for step in range(1, 20)]
    batches = [lenient.batch(step) for step in range(1, 20)]
    assert len(told.warnings) == 1
    assert "p2.png" in told.warnings[0]
    kept = [
        torch.equal(one.high[place], other.high[place])
        for one, other in zip(whole, batches, strict=True)
        for place in range(4)
    ]
    assert 0.5 < np.mean(kept) < 1, "only patches of the broken picture are replaced"


def test_the_thread_tells_of_a_broken_picture(folders: TrainingFolders) -> None:
    data = folders.data(small_config())
    break_picture(folders, "p2.png", delete=True)
    with pytest.raises(UserError, match=r"p2\.png"), data.batches(1, 20, range(4), pinned=False) as batches:
        list(batches)


def test_when_no_picture_is_left_it_is_told(folders: TrainingFolders) -> None:
    data = folders.data(small_config(unreadable="skip"))
    shutil.rmtree(folders.train)
    shutil.rmtree(folders.cache)
    with pytest.raises(UserError, match="no training picture can be read any more"):
        [data.batch(step) for step in range(1, 20)]


def test_a_picture_that_changed_its_size_is_not_used(folders: TrainingFolders) -> None:
    data = folders.data(small_config())
    shutil.rmtree(folders.cache)
    folders.cache.mkdir()
    for path in folders.train.iterdir():
        write_small_picture(path, 30, 30, seed=0)
    with pytest.raises(UserError, match="changed its size"):
        data.batch(1)


def test_the_fingerprint_knows_pictures_not_places(folders: TrainingFolders) -> None:
    before = folders.data(small_config()).fingerprint
    moved = folders.root / "moved"
    shutil.copytree(folders.train, moved)
    assert TrainingData([moved], SCALE, small_config(), cache=folders.cache).fingerprint == before
    (moved / "p0.png").unlink()
    assert TrainingData([moved], SCALE, small_config(), cache=folders.cache).fingerprint != before


def test_patches_for_luma_are_the_luma_of_the_same_patches(folders: TrainingFolders) -> None:
    config = small_config()
    colour = folders.data(config).batch(3)
    grey = TrainingData([folders.train], SCALE, config, channels=1, cache=folders.cache).batch(3)
    for one, other in zip(grey, colour, strict=True):
        wanted = [luma(patch) for patch in other.numpy()]
        np.testing.assert_array_equal(one.numpy(), np.stack(wanted))
