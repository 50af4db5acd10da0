"""What engines make of flat pictures: drawn engines with known faults, small networks, and published weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_quantized import float_network, quantized_network

from srquant import CalibrationConfig, quantize
from srquant.engines import able_engines, load, open_engine
from srquant.engines.base import Pixels
from srquant.errors import UserError
from srquant.evaluation.flat_pictures import STEPS, FlatPictures, judge_flat_pictures
from srquant.evaluation.verification import judge_float, verify
from srquant.networks.info import NetworkInfo
from srquant.progress import Silent

GOOD = FlatPictures(255, 0, 0.0, 0.0, 0)


class DrawnEngine:
    """Repeats pixels after `change`, which is given float64 levels; what lies within the halo of an edge is black."""

    name = "drawn"

    def __init__(
        self,
        change: Callable[[np.ndarray], np.ndarray] = np.copy,
        *,
        halo: int | None = 3,
        shape: tuple[int, int] | None = None,
        channels: int = 3,
        multiple: int = 1,
    ) -> None:
        self.info = NetworkInfo(name="drawn", scale=2, channels=channels, peak=255.0, size_multiple=multiple)
        self.halo = halo
        self.shape = shape
        self._change = change
        self.sizes: set[tuple[int, ...]] = set()

    def run(self, picture: Pixels) -> Pixels:
        self.sizes.add(picture.shape)
        found = self._change(picture.repeat(2, axis=0).repeat(2, axis=1).astype(np.float64))
        if self.halo:
            edge = 2 * self.halo
            seen = np.zeros(found.shape, bool)
            seen[edge:-edge, edge:-edge] = True
            found = np.where(seen, found, 0)
        return np.clip(np.rint(found), 0, 255).astype(np.uint8)

    def left_in_float(self) -> list[str]:
        return []


def fall_at_100(levels: np.ndarray) -> np.ndarray:
    return np.where(levels >= 100, levels - 12, levels)


def tint(levels: np.ndarray) -> np.ndarray:
    return np.where(levels == 100, levels - np.array([0, 4, 0]), levels)


def one_dark_phase(levels: np.ndarray) -> np.ndarray:
    found = levels.copy()
    found[::2, ::2] -= 3
    return found


@pytest.mark.parametrize(
    ("change", "found", "faults"),
    [
        (np.copy, GOOD, []),
        (lambda x: x * 0.99, FlatPictures(252, 0, 0.0, -3.0, 3), ["white becomes 252"]),
        (lambda x: x + 2, FlatPictures(255, 2, 0.0, 2.0, 2), ["black becomes 2"]),
        (lambda x: np.minimum(x, 254), FlatPictures(254, 0, 0.0, -1.0, 1), []),
        (fall_at_100, FlatPictures(243, 0, 7.0, -12.0, 12), ["white becomes 243", "the grey ramp falls by 7.00"]),
        (tint, FlatPictures(255, 0, 0.0, -4.0, 4), []),
        (one_dark_phase, FlatPictures(252, 0, 0.0, -0.75, 3), ["white becomes 252"]),
    ],
    ids=["nothing", "darkens", "brightens", "by one level", "falls", "tints a grey", "darkens every fourth pixel"],
)
def test_faults_of_drawn_engines_are_found(
    change: Callable[[np.ndarray], np.ndarray], found: FlatPictures, faults: list[str]
) -> None:
    judged = judge_flat_pictures(DrawnEngine(change, halo=0))
    assert judged == found
    assert judged.faults() == faults


def test_the_border_is_told_apart() -> None:
    judged = judge_flat_pictures(DrawnEngine(halo=3))
    assert judged == FlatPictures(255, 0, 0.0, 0.0, 255)
    assert not judged.faults()


def test_pictures_suit_the_engine() -> None:
    steps: list[None] = []
    engines = [
        (DrawnEngine(halo=3), (8, 8, 3)),
        (DrawnEngine(halo=3, multiple=5), (10, 10, 3)),
        (DrawnEngine(halo=None, channels=1), (48, 48, 1)),
        (DrawnEngine(halo=3, shape=(7, 20)), (7, 20, 3)),
        (DrawnEngine(halo=None, shape=(5, 9)), (5, 9, 3)),
    ]
    for engine, size in engines:
        judged = judge_flat_pictures(engine, advance=lambda: steps.append(None))
        assert engine.sizes == {size}
        assert (judged.white, judged.black, judged.shift) == (255, 0, 0.0)
    assert len(steps) == len(engines) * len(STEPS)


@pytest.mark.parametrize("shape", [(5, 5), (6, 20), (20, 6)])
def test_a_file_that_is_all_border_is_not_judged(shape: tuple[int, int]) -> None:
    judged = judge_flat_pictures(DrawnEngine(halo=3, shape=shape))
    assert judged.white == 0
    assert (judged.judged, judged.faults(), judged.faults(GOOD)) == (False, [], [])
    assert str(judged) == "all border, not judged"
    assert not judged.is_worse_at_the_border(GOOD)
    smallest = judge_flat_pictures(DrawnEngine(lambda x: x * 0, halo=3, shape=(7, 7)))
    assert (smallest.judged, smallest.faults()) == (True, ["white becomes 0"])


def test_a_border_may_be_16_levels_worse_than_the_float_network_s() -> None:
    wanted = replace(GOOD, border=30)
    assert not replace(GOOD, border=46).is_worse_at_the_border(wanted)
    assert replace(GOOD, border=47).is_worse_at_the_border(wanted)
    assert replace(GOOD, border=47).faults(wanted) == []


def test_an_engine_may_be_as_bad_as_the_float_network() -> None:
    found = FlatPictures(251, 4, 3.0, 4.0, 9)
    assert found.faults() == ["white becomes 251", "black becomes 4", "the grey ramp falls by 3.00"]
    assert found.faults(FlatPictures(252, 3, 2.0, 0.0, 0)) == []
    assert found.faults(FlatPictures(252, 2, 2.0, 0.0, 0)) == ["black becomes 4"]


@pytest.mark.parametrize("key", ["abpn_x3", "edsr_x2", "plainusr_x3"])
def test_engines_agree_on_flat_pictures(key: str) -> None:
    network = quantized_network(key)
    wanted = judge_flat_pictures(open_engine(network, "reference"))
    for name in able_engines(network):
        found = judge_flat_pictures(open_engine(network, name))
        assert abs(found.white - wanted.white) <= 2, name
        assert abs(found.black - wanted.black) <= 2, name
        assert abs(found.shift - wanted.shift) <= 2, name


def test_verify_judges_flat_pictures_and_holds_them_against_the_float_network() -> None:
    network = quantized_network("abpn_x3")
    (one,) = verify(network, ["onnxruntime"], progress=Silent())
    assert one.flat == judge_flat_pictures(open_engine(network, "onnxruntime"))
    plain = float_network("abpn_x3")
    assert judge_float(network, plain) == judge_flat_pictures(open_engine(plain, "torch"))
    with pytest.raises(UserError, match="not of one shape: edsr x2, abpn x3"):
        judge_float(network, float_network("edsr_x2"))
    with pytest.raises(UserError, match="this one is quantised"):
        judge_float(network, network)


@pytest.mark.parametrize("name", ["abpn_x3", "xlsr_x3", "espcn_y_x2", "fsrcnn_y_x2", "fsrcnn_y_x4"])
def test_published_weights_at_8_bit_keep_white_black_and_the_ramp(name: str, shared: Path) -> None:
    data = shared / "data"
    network = load(data / "weights" / f"{name}.safetensors")
    wanted = judge_flat_pictures(open_engine(network, "torch"))
    quantized = quantize(network, data / "train" / "bsds500", calibration=CalibrationConfig(images=20))
    for engine in ("torch", "onnxruntime"):
        found = judge_flat_pictures(open_engine(quantized, engine))
        assert found.faults(wanted) == [], engine
