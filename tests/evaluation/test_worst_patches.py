from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_quantized import float_network, noise

from srquant.errors import UserError
from srquant.evaluation.clip_study import scores
from srquant.evaluation.patches import sheet, worst_patches
from srquant.evaluation.timing import interleaved_medians
from srquant.imaging import Picture, open_set, write_picture
from srquant.progress import Silent


class Wrong:
    """Repeats pixels, and is off by `error` at one place."""

    name = "wrong"
    halo: int | None = 0
    shape: tuple[int, int] | None = None

    def __init__(self, error: int, at: tuple[int, int]) -> None:
        self.info = float_network("edsr_x2").info
        self._error, self._at = error, at

    def run(self, picture: np.ndarray) -> np.ndarray:
        enlarged = picture.repeat(2, axis=0).repeat(2, axis=1)
        enlarged[self._at] = np.clip(enlarged[self._at].astype(int) + self._error, 0, 255)
        return enlarged

    def left_in_float(self) -> list[str]:
        return []


def test_the_worst_patches_are_found_and_shown(tmp_path: Path) -> None:
    pixels = np.full((100, 150, 3), 100, np.uint8)
    write_picture(tmp_path / "grey.png", Picture(pixels, None, False, None, None))
    engines = {"good": Wrong(0, (0, 0)), "bad": Wrong(48, (70, 100))}
    (first, second) = worst_patches(engines, open_set(tmp_path, 2), count=2)
    assert first.loss == pytest.approx(48**2 / 48**2)
    assert second.loss == 0
    assert list(first.views) == ["low resolution", "good", "bad", "true"]
    assert first.views["bad"][70 - 48, 100 - 96].tolist() == [148] * 3
    shown = sheet([first, second])
    assert shown.shape[1] == 4 * (48 * 4 + 8) + 8
    bad = shown[32 : 32 + 192, 8 + 2 * 200 : 8 + 2 * 200 + 192]
    assert (bad == 148).all(axis=2).sum() == 4 * 4
    assert (bad == 100).all(axis=2).sum() == 192 * 192 - 4 * 4


@pytest.mark.parametrize(("size", "at"), [((30, 200), (10, 170)), ((200, 30), (170, 10))])
def test_patches_of_a_narrow_picture_are_cut_where_they_were_judged(
    size: tuple[int, int], at: tuple[int, int], tmp_path: Path
) -> None:
    write_picture(tmp_path / "grey.png", Picture(np.full((*size, 3), 100, np.uint8), None, False, None, None))
    patches = worst_patches({"good": Wrong(0, at), "bad": Wrong(48, at)}, open_set(tmp_path, 2), count=6)
    assert {patch.views["bad"].shape for patch in patches} == {(30, 30, 3)}
    assert patches[0].loss == pytest.approx(48**2 / 30**2)
    assert [(patch.views["bad"] == 148).all(axis=2).sum() for patch in patches] == [1, 0, 0, 0, 0, 0]
    bad = sheet(patches)[32 : 32 + 120, 8 + 2 * 200 : 8 + 2 * 200 + 120]
    assert (bad == 148).all(axis=2).sum() == 4 * 4


def test_times_are_medians_of_interleaved_runs() -> None:
    order: list[str] = []

    class Noted(Wrong):
        def __init__(self, word: str) -> None:
            super().__init__(0, (0, 0))
            self.word = word

        def run(self, picture: np.ndarray) -> np.ndarray:
            order.append(self.word)
            return picture

    found = interleaved_medians({"a": Noted("a"), "b": Noted("b")}, noise(4, 4), 3, Silent())
    assert order == ["a", "b"] * 4
    assert all(0 <= time < 1000 for time in found.values())


def test_a_picture_that_is_met_exactly_has_no_mean(tmp_path: Path) -> None:
    picture = Picture(np.full((40, 40, 3), 90, np.uint8), None, False, None, None)
    write_picture(tmp_path / "grey.png", picture)
    with pytest.raises(UserError, match=r"'grey.*' is met exactly.*leave it out"):
        scores(Wrong(0, (0, 0)), open_set(tmp_path, 2))
    assert scores(Wrong(3, (9, 9)), open_set(tmp_path, 2))["psnr_rgb"] > 40
