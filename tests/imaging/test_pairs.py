from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from srquant.errors import UserError
from srquant.imaging import BenchmarkSet, Pair, Picture, downscale, open_set, write_picture


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = noise(height, width, 3, seed=seed)
    write_picture(path, Picture(rgb))
    return rgb


class TestLoad:
    def test_hr_is_cropped_and_lr_made(self, tmp_path: Path) -> None:
        rgb = put(tmp_path / "a.png", 13, 18)
        lr, hr = Pair("a", tmp_path / "a.png", None).load(4)
        np.testing.assert_array_equal(hr, rgb[:12, :16])
        np.testing.assert_array_equal(lr, downscale(rgb[:12, :16], 4))

    def test_given_lr_is_taken(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", 13, 18)
        small = put(tmp_path / "small.png", 3, 4, seed=1)
        lr, hr = Pair("a", tmp_path / "a.png", tmp_path / "small.png").load(4)
        np.testing.assert_array_equal(lr, small)
        assert hr.shape == (12, 16, 3)

    def test_given_lr_of_another_size(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", 13, 18)
        put(tmp_path / "small.png", 3, 5)
        with pytest.raises(UserError, match=r"small\.png' is 5x3, but .*a\.png' \(18x13\) needs 4x3 at x4"):
            Pair("a", tmp_path / "a.png", tmp_path / "small.png").load(4)

    def test_grey_is_held_three_times(self, tmp_path: Path) -> None:
        grey = np.repeat(noise(8, 8, 1), 3, axis=2)
        write_picture(tmp_path / "a.png", Picture(grey, grey=True))
        lr, hr = Pair("a", tmp_path / "a.png", None).load(2)
        np.testing.assert_array_equal(hr, grey)
        assert lr.shape == (4, 4, 3)

    def test_transparent_parts_are_refused_an_opaque_alpha_not(self, tmp_path: Path) -> None:
        alpha = np.full((8, 8), 255, np.uint8)
        path = tmp_path / "a.png"
        write_picture(path, Picture(noise(8, 8, 3), alpha))
        assert Pair("a", path, None).load(2)[0].shape == (4, 4, 3)
        alpha[3, 3] = 254
        write_picture(path, Picture(noise(8, 8, 3), alpha))
        with pytest.raises(UserError, match="transparent parts"):
            Pair("a", path, None).load(2)

    def test_too_small_and_wrong_scale(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", 3, 9)
        with pytest.raises(UserError, match=r"a\.png' \(9x3\) is too small for scale 4"):
            Pair("a", tmp_path / "a.png", None).load(4)
        with pytest.raises(UserError, match="scale must be"):
            Pair("a", tmp_path / "a.png", None).load(0)


class TestOpenSet:
    def test_plain_folder(self, tmp_path: Path) -> None:
        for name in ("b.png", "a.bmp"):
            put(tmp_path / "Mine" / name)
        folder = tmp_path / "Mine"
        assert open_set(folder, 2) == BenchmarkSet(
            "Mine", (Pair("a", folder / "a.bmp", None), Pair("b", folder / "b.png", None))
        )

    @pytest.mark.parametrize("given", ["Mine", "Mine/HR"])
    def test_hr_folder(self, tmp_path: Path, given: str) -> None:
        put(tmp_path / "Mine" / "HR" / "a.png")
        put(tmp_path / "Mine" / "thumbnail.png")
        found = open_set(tmp_path / given, 3)
        assert found == BenchmarkSet("Mine", (Pair("a", tmp_path / "Mine" / "HR" / "a.png", None),))

    def test_name_of_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(tmp_path / "Mine" / "HR" / "a.png")
        monkeypatch.chdir(tmp_path / "Mine" / "HR")
        assert open_set(Path(".."), 2).name == "Mine"
        assert open_set(Path(), 2).name == "Mine"
        monkeypatch.chdir(tmp_path / "Mine")
        assert open_set(Path(), 2).name == "Mine"
        assert open_set(Path("HR"), 2).name == "Mine"

    @pytest.mark.parametrize("lr_folder", ["LR/x2", "LR_bicubic/X2"])
    @pytest.mark.parametrize("ending", ["", "x2"])
    def test_given_lr(self, tmp_path: Path, lr_folder: str, ending: str) -> None:
        names = ["a", "ax2", "b"]  # a name that looks like another's LR
        for name in names:
            put(tmp_path / "HR" / f"{name}.png")
            put(tmp_path / lr_folder / f"{name}{ending}.webp", 6, 8)
        found = open_set(tmp_path, 2)
        assert [(pair.name, pair.lr) for pair in found.pairs] == [
            (name, tmp_path / lr_folder / f"{name}{ending}.webp") for name in names
        ]
        assert open_set(tmp_path, 4).pairs[0].lr is None

    def test_missing_and_surplus_partners_are_named(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            put(tmp_path / "HR" / f"{name}.png")
        put(tmp_path / "LR" / "x2" / "a.png")
        with pytest.raises(UserError, match=r"HR/b\.png' has no partner 'b' or 'bx2' in .*LR/x2"):
            open_set(tmp_path, 2)
        for name in ("b", "c"):
            put(tmp_path / "LR" / "x2" / f"{name}.png")
        with pytest.raises(UserError, match=r"LR/x2/c\.png' has no partner in .*HR'"):
            open_set(tmp_path, 2)
        (tmp_path / "LR" / "x2" / "c.png").rename(tmp_path / "LR" / "x2" / "ax2.png")
        with pytest.raises(UserError, match=r"ax2\.png' has no partner"):
            open_set(tmp_path, 2)

    def test_two_files_of_one_name(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png")
        put(tmp_path / "a.bmp")
        with pytest.raises(UserError, match=r"a\.png' and 'a\.bmp' have the same name"):
            open_set(tmp_path, 2)

    def test_empty_missing_and_wrong_scale(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no pictures in"):
            open_set(tmp_path, 2)
        (tmp_path / "HR").mkdir()
        with pytest.raises(UserError, match=r"no pictures in .*HR'"):
            open_set(tmp_path, 2)
        with pytest.raises(UserError, match="there is no folder"):
            open_set(tmp_path / "no", 2)
        with pytest.raises(UserError, match="scale must be"):
            open_set(tmp_path, 0)
        put(tmp_path / "HR" / "a.png")
        (tmp_path / "LR" / "x2").mkdir(parents=True)
        with pytest.raises(UserError, match=r"no pictures in .*LR/x2'"):
            open_set(tmp_path, 2)
