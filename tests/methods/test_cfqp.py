from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from small_quantized import float_network
from torch import Tensor

from srquant.config import CalibrationConfig
from srquant.errors import UserError
from srquant.imaging.crops import Crop
from srquant.methods import cfqp
from srquant.methods.cfqp import Overshoot, augment, representative, tame
from srquant.progress import Silent
from srquant.quantizers.folding import fold


def crops(*values: int | np.ndarray) -> list[Crop]:
    """Flat pictures of these values, or pictures as given."""
    pictures = [np.full((8, 8, 3), v, np.uint8) if isinstance(v, int) else v for v in values]
    return [Crop(pixels, {"file": f"p{i}.png"}) for i, pixels in enumerate(pictures)]


def checker(low: int, high: int) -> Tensor:
    """uint8 [1, 3, 8, 8] of two values in turn."""
    field = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    return torch.where(field == 0, low, high).byte().expand(1, 3, 8, 8).clone()


def sharpen(picture: Tensor) -> Tensor:
    """Three times the distance from the mean: overshoots where the contrast is high."""
    mean = picture.mean((2, 3), keepdim=True)
    return mean + 3 * (picture - mean)


def test_overshoot_is_measured_in_grey_levels() -> None:
    found = Overshoot.of(torch.tensor([[-10.0, 0.0, 255.0, 300.0]]))
    assert found == Overshoot(-10.0, 300.0, 0.25, 0.25)
    assert not found.stays_within()
    assert Overshoot.of(torch.tensor([-0.5, 255.5])).stays_within(0.5)
    assert not Overshoot.of(torch.tensor([-0.5, 255.5])).stays_within()


def test_pictures_are_left_alone_without_augmentation() -> None:
    picture = checker(3, 250)
    assert next(augment([picture], CalibrationConfig())) is picture


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"gain": 0.5}, [20, 100]), ({"offset": 60.0}, [100, 255]), ({"gain": 2.0, "offset": -100.0}, [0, 255])],
)
def test_gain_and_offset(changes: dict[str, float], expected: list[int]) -> None:
    (found,) = augment([checker(40, 200)], CalibrationConfig.model_validate(changes))
    assert found.dtype == torch.uint8
    assert found.unique().tolist() == expected


def test_noise_fills_the_range_and_hangs_on_the_seed() -> None:
    pictures = [torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)] * 2
    one, two = augment(pictures, CalibrationConfig(noise=1.0, seed=4))
    assert (one.min(), one.max()) == (0, 255)
    assert abs(float(one.double().mean()) - 127.5) < 2
    assert not torch.equal(one, two)
    again = list(augment(pictures, CalibrationConfig(noise=1.0, seed=4)))
    assert torch.equal(one, again[0])
    assert torch.equal(two, again[1])
    half, _ = augment(pictures, CalibrationConfig(noise=0.5, seed=4))
    assert (half.min(), half.max()) == (64, 191)  # rounded from 64.0.. and ..191.5


def test_a_picture_without_overshoot_needs_no_taming() -> None:
    picture = checker(100, 150)
    tamed = tame(sharpen, picture)
    assert tamed.picture is picture
    assert (tamed.gain, tamed.offset) == (1.0, 0.0)


def test_taming_ends_within_the_range_of_pictures() -> None:
    tamed = tame(sharpen, checker(20, 240))
    assert tamed.output.stays_within(0.5)
    assert tamed.output == Overshoot.of(sharpen(tamed.picture.float()))
    assert 0.2 < tamed.gain < 0.5
    # the contrast that is left uses what may be used: taming does not make everything grey
    assert tamed.output.highest - tamed.output.lowest > 200
    expected = (checker(20, 240).double() * tamed.gain + tamed.offset).round()
    assert (tamed.picture.double() - expected).abs().max() <= 1


def test_taming_gives_up_after_eight_rounds() -> None:
    rounds: list[Tensor] = []

    def hopeless(picture: Tensor) -> Tensor:
        rounds.append(picture)
        return picture + 1000

    assert not tame(hopeless, checker(0, 255)).within
    assert len(rounds) == 9


class Warned(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_pictures_that_stay_untamed_are_recorded_and_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    network, progress = float_network("abpn_x3"), Warned()
    noisy = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pictures = crops(noisy, 120, noisy)
    _, records = representative(network, pictures, CalibrationConfig(mode="tame"), progress)
    assert progress.warnings == []
    assert not any("overshoots" in record for record in records)
    monkeypatch.setattr(cfqp, "fold", lambda network: lambda picture: picture * 1.5 + 300 * (picture.std() > 0.5))
    _, records = representative(network, pictures, CalibrationConfig(mode="tame"), progress)
    assert [record.get("overshoots") for record in records] == [True, None, True]
    (warning,) = progress.warnings
    assert re.match("2 of 3 pictures still leave 0..255 after 8 rounds of taming; mode 'range'", warning)


@pytest.mark.parametrize("mode", ["select", "tame"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_output_that_is_not_finite_is_refused(mode: str, value: float) -> None:
    network = copy.deepcopy(float_network("abpn_x3"))
    with torch.no_grad():
        next(reversed(list(network.parameters())))[0] = value
    with pytest.raises(UserError, match=r"output is not finite, .*: is the network damaged") as error:
        representative(network, crops(7), CalibrationConfig.model_validate({"mode": mode}))
    assert "\n" not in str(error.value)


def test_select_keeps_the_pictures_whose_output_stays_within() -> None:
    network = float_network("abpn_x3")
    random = np.random.default_rng(0)
    pictures = [random.integers(90, 160, (8, 8, 3), dtype=np.uint8), random.integers(0, 256, (8, 8, 3), dtype=np.uint8)]
    unclipped = fold(network)
    with torch.no_grad():
        within = [
            Overshoot.of(unclipped(torch.from_numpy(p).permute(2, 0, 1)[None].float())).stays_within() for p in pictures
        ]
    assert within == [True, False], "the test needs one of either kind"
    kept, records = representative(network, crops(*pictures), CalibrationConfig(mode="select"))
    assert [record["file"] for record in records] == ["p0.png"]
    assert np.array_equal(kept[0][0].permute(1, 2, 0).numpy(), pictures[0])
    with pytest.raises(UserError, match=r"leaves none of 1 pictures.*'range' needs no selection"):
        representative(network, crops(pictures[1]), CalibrationConfig(mode="select"))


def test_tame_changes_the_pictures_and_records_how() -> None:
    network = float_network("abpn_x3")
    noisy = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tamed, flat), records = representative(network, crops(noisy, 120), CalibrationConfig(mode="tame"))
    assert records[0]["gain"] < 1  # pyright: ignore[reportOperatorIssue]
    assert records[1] == {"file": "p1.png", "gain": 1.0, "offset": 0.0}
    assert (flat == 120).all()
    with torch.no_grad():
        assert Overshoot.of(fold(network)(tamed.float())).stays_within(0.5)


def test_range_takes_pictures_as_they_are() -> None:
    kept, records = representative(float_network("abpn_x3"), crops(7, 9), CalibrationConfig())
    assert [int(picture.max()) for picture in kept] == [7, 9]
    assert records == [{"file": "p0.png"}, {"file": "p1.png"}]
