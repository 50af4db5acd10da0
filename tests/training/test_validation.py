from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import SCALE, TrainingFolders
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.imaging import open_set
from srquant.imaging.colour import luma
from srquant.metrics import Protocol, psnr
from srquant.training import Validation

CPU = torch.device("cpu")


class Nearest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.9)
        self.inner.eval()

    def forward(self, picture: Tensor) -> Tensor:
        assert not self.training
        return picture.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) * 1.2 - 20.3


def test_the_score_is_that_of_the_protocol(folders: TrainingFolders) -> None:
    pairs = [pair.load(SCALE) for pair in open_set(folders.held_out, SCALE).pairs]
    expected = []
    for low, high in pairs:
        enlarged = low.repeat(SCALE, 0).repeat(SCALE, 1).astype(np.float32) * np.float32(1.2) - np.float32(20.3)
        expected.append(psnr(np.rint(enlarged.clip(0, 255)).astype(np.uint8), high, Protocol("y", SCALE)))
    validation = Validation(folders.held_out, SCALE, 10)
    network = Nearest()
    assert validation.score(network, CPU) == pytest.approx(np.mean(expected), abs=1e-9)
    assert network.training
    assert not network.inner.training
    assert validation.score(network, CPU, 0, 2) + validation.score(network, CPU, 1, 2) == pytest.approx(
        np.mean(expected), abs=1e-9
    )
    assert Validation(folders.held_out, SCALE, 1).score(network, CPU) == pytest.approx(expected[0], abs=1e-9)
    assert str(validation.protocol).startswith("PSNR/SSIM on Y")


@pytest.mark.parametrize(
    "name", ["Set5", "set14", "B100", "BSD100", "BSDS100", "Urban100", "Manga109", "Set5_HR", "urban100-x4"]
)
def test_benchmarks_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "HR").mkdir(parents=True)
    for folder in (tmp_path / name, tmp_path / name / "HR"):
        with pytest.raises(UserError, match=f"'{name}' is a benchmark set"):
            Validation(folder, 2, 10)
    (tmp_path / "innocent").symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=f"'{name}' is a benchmark set"):
        Validation(tmp_path / "innocent", 2, 10)


@pytest.mark.parametrize("name", ["set50", "DIV2K_valid_HR", "my-set5", "B1000"])
def test_other_names_are_not(folders: TrainingFolders, name: str) -> None:
    folder = folders.held_out.rename(folders.root / name)
    assert len(Validation(folder, SCALE, 10)) == 2


def test_bad_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        Validation(tmp_path / "missing", 2, 10)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"x\.png"):
        Validation(tmp_path / "bad", 2, 10)


def test_a_network_for_luma_is_judged_on_luma(folders: TrainingFolders) -> None:
    expected = []
    for pair in open_set(folders.held_out, SCALE).pairs:
        low, high = (luma(picture)[..., 0] for picture in pair.load(SCALE))
        enlarged = low.repeat(SCALE, 0).repeat(SCALE, 1).astype(np.float32) * np.float32(1.2) - np.float32(20.3)
        expected.append(psnr(np.rint(enlarged.clip(0, 255)).astype(np.uint8), high, Protocol("y", SCALE)))
    validation = Validation(folders.held_out, SCALE, 10, channels=1)
    assert validation.score(Nearest(), CPU) == pytest.approx(np.mean(expected), abs=1e-9)
