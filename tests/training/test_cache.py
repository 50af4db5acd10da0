from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_training import write_small_picture

from srquant.errors import UserError
from srquant.imaging import downscale, read_picture
from srquant.training.cache import PictureCache, UnreadablePictureError, default_folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_small_picture(tmp_path / "p.png", 45, 62, seed=0)
    return tmp_path / "p.png"


def test_pixels_are_those_of_the_protocol_from_a_memory_map(tmp_path: Path, picture: Path) -> None:
    cache = PictureCache(tmp_path / "cache", 3)
    entry = cache.entry(picture)
    assert cache.size(entry) == (15, 20)
    low, high = PictureCache(tmp_path / "cache", 3).load(entry)
    expected = read_picture(picture).rgb[:, :60]
    np.testing.assert_array_equal(high, expected)
    np.testing.assert_array_equal(low, downscale(np.ascontiguousarray(expected), 3))
    assert isinstance(low, np.memmap)
    assert isinstance(high, np.memmap)


def test_a_cached_picture_is_not_decoded_again(tmp_path: Path, picture: Path) -> None:
    cache = PictureCache(tmp_path / "cache", 2)
    entry = cache.entry(picture)
    wanted = [part.copy() for part in cache.load(entry)]
    picture.unlink()
    for part, again in zip(wanted, cache.load(entry), strict=True):
        np.testing.assert_array_equal(part, again)


def test_scales_share_the_large_picture(tmp_path: Path, picture: Path) -> None:
    for scale in (2, 4):
        cache = PictureCache(tmp_path / "cache", scale)
        cache.load(cache.entry(picture))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_changed_picture_has_a_new_entry(tmp_path: Path, picture: Path) -> None:
    cache = PictureCache(tmp_path / "cache", 2)
    before = cache.entry(picture)
    old = cache.load(before)[1].copy()
    write_small_picture(picture, 45, 62, seed=1)
    os.utime(picture, ns=(1, 1))
    after = cache.entry(picture)
    assert after != before
    assert not np.array_equal(cache.load(after)[1], old)


def flip_a_pixel(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_pixel,
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.zeros(5)),
        Path.unlink,
    ],
    ids=["flipped", "short", "zeros", "empty", "other", "gone"],
)
@pytest.mark.parametrize("which", ["low", "high"])
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, picture: Path, damage: Callable[[Path], object], which: str
) -> None:
    cache = PictureCache(tmp_path / "cache", 2)
    entry = cache.entry(picture)
    wanted = [part.copy() for part in cache.load(entry)]
    damage(getattr(entry, which))
    for part, again in zip(wanted, PictureCache(tmp_path / "cache", 2).load(entry), strict=True):
        np.testing.assert_array_equal(part, again)
    picture.unlink()
    cache.load(entry)


def test_without_entry_and_picture_the_picture_is_named(tmp_path: Path, picture: Path) -> None:
    cache = PictureCache(tmp_path / "cache", 2)
    entry = cache.entry(picture)
    picture.unlink()
    with pytest.raises(UnreadablePictureError, match=r"p\.png"):
        cache.load(entry)
    with pytest.raises(UnreadablePictureError, match=r"p\.png"):
        cache.entry(picture)


def test_a_place_that_cannot_be_a_cache_is_told(tmp_path: Path, picture: Path) -> None:
    with pytest.raises(UserError, match="cache"):
        PictureCache(picture, 2)


def test_temporary_files_of_killed_writers_go_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, age in ((".old.npy", 90_000), (".new.npy", 10)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    PictureCache(folder, 2)
    assert [path.name for path in folder.iterdir()] == [".new.npy"]


def test_the_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "srquant" / "pictures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "srquant" / "pictures"


SHARED = """
import sys
from pathlib import Path
from srquant.training.cache import PictureCache
cache = PictureCache(Path(sys.argv[1]), 2)
entry = cache.entry(Path(sys.argv[2]))
for _ in range(40):
    low, high = cache.load(entry)
    print(int(low.sum()), int(high.sum()))
    entry.low.unlink(missing_ok=True)
"""


def test_two_processes_share_a_cache(tmp_path: Path, picture: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SHARED, str(tmp_path / "cache"), str(picture)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate(timeout=100)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len({line for one in lines for line in one}) == 1
    assert [len(one) for one in lines] == [40, 40]
