from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from small_quantized import float_network, noise
from torch import Tensor

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.methods.overshoot import OvershootReport, overshoot_report
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.folding import fold


def byte(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


def report(pictures: list[np.ndarray], key: str = "abpn_x3") -> OvershootReport:
    names = [f"p{i}" for i in range(len(pictures))]
    return overshoot_report(float_network(key), names, map(byte, pictures), Silent())


@pytest.mark.parametrize("key", ["abpn_x3", "xlsr_x3", "edsr_x2"])
def test_outputs_are_those_of_the_network_without_its_clip(key: str) -> None:
    pictures = [noise(12, 14, seed) for seed in range(3)]
    found = report(pictures, key)
    assert [picture.name for picture in found.pictures] == ["p0", "p1", "p2"]
    for picture, one in zip(pictures, found.pictures, strict=True):
        with torch.no_grad():
            raw = fold(float_network(key))(byte(picture).float())
        assert one.output.lowest == pytest.approx(float(raw.min()), abs=1e-3)
        assert one.output.highest == pytest.approx(float(raw.max()), abs=1e-3)
        assert one.output.below == pytest.approx(float((raw < 0).double().mean()))
        assert one.output.above == pytest.approx(float((raw > 255).double().mean()))
        assert (one.darkest, one.brightest) == (picture.min(), picture.max())


def test_ranges_are_those_of_calibration_by_extremes() -> None:
    pictures = [noise(12, 14, seed) for seed in range(5)]
    found = report(pictures)
    assert [sorted(tensor.ranges) for tensor in found.tensors] == [[1, 2, 3, 5]] * len(found.tensors)
    for count in (1, 2, 5):
        config = QuantizationConfig(ranges="minmax", output_range="calibrated")
        network = QuantizedNetwork(float_network("abpn_x3"), config)
        network.calibrate(lambda count=count: (byte(picture).float() for picture in pictures[:count]))
        ranges = {tensor.name: tensor.ranges[count] for tensor in found.tensors}
        assert ranges.pop("x") == (0.0, 255.0)
        assert network.ranges.keys() == ranges.keys()
        for name, ends in ranges.items():
            assert network.ranges[name] == pytest.approx(ends, rel=1e-6)
    assert found.output == "add"


@pytest.mark.parametrize("layer", [0, -1])
def test_a_damaged_network_is_refused(layer: int) -> None:
    network = copy.deepcopy(float_network("abpn_x3"))
    with torch.no_grad():
        list(network.parameters())[layer].fill_(float("nan"))
    with pytest.raises(UserError, match=r"is not finite: is the network damaged\?$"):
        overshoot_report(network, ["p0"], [byte(noise(12, 14))], Silent())


def test_it_is_plain_data() -> None:
    told = json.loads(json.dumps(report([noise(12, 14)]).to_json(), allow_nan=False))
    assert list(told) == ["output", "pictures", "tensors", "advice"]
    assert told["tensors"][0]["ranges"] == {"1": [0.0, 255.0]}


def flat(value: int) -> np.ndarray:
    return np.full((12, 14, 3), value, np.uint8)


def advice(pictures: list[np.ndarray]) -> str:
    return "\n".join(report(pictures).advice)


def test_few_pictures_are_too_few() -> None:
    assert "too few pictures: 2; take 5 to 20" in advice([noise(12, 14, seed) for seed in range(2)])
    assert "too few" not in advice([noise(12, 14, seed) for seed in range(5)])


def test_dark_and_light_pictures_are_told() -> None:
    noisy = [noise(12, 14, seed) for seed in range(5)]
    assert "all pictures are dark, none has a value above 127" in advice([picture // 2 for picture in noisy])
    assert "all pictures are light, none has a value below 128" in advice([picture // 2 + 128 for picture in noisy])
    assert "all pictures" not in advice(noisy)
    alike = report([flat(128)] * 5).advice
    assert "all pictures are of one brightness, 128..128: layers inside get too small a range" in alike
    assert sum("all pictures" in line for line in alike) == 1


def test_the_picture_that_decides_ranges_alone_is_named() -> None:
    pictures = [*[flat(100 + i) for i in range(9)], noise(12, 14)]
    found = report(pictures)
    assert "'p9' alone decides the range of" in "\n".join(found.advice)
    first = next(tensor for tensor in found.tensors if tensor.name == "body_1")
    assert first.decided_by == "p9"
    without = report(pictures[:9])
    lower, upper = first.ranges[10]
    less = next(tensor for tensor in without.tensors if tensor.name == "body_1").ranges[9]
    assert first.share == pytest.approx(1 - (less[1] - less[0]) / (upper - lower))
    assert "alone decides" not in advice([noise(12, 14), *[flat(100 + i) for i in range(8)], noise(12, 14)])


def test_ranges_that_still_grow_are_told() -> None:
    rising = [flat(20 * i) for i in range(10)]
    found = report(rising)
    assert "tensors still grow" in "\n".join(found.advice)
    (picture,) = [tensor for tensor in found.tensors if tensor.name == "x"]
    assert picture.growth == pytest.approx(1 - 80 / 180)
    assert "still grow" not in advice(rising[::-1])


def test_overshoot_is_told_with_what_it_would_cost() -> None:
    found = report([noise(12, 14, seed) for seed in range(6)])
    output = next(tensor for tensor in found.tensors if tensor.name == found.output)
    lower, upper = output.ranges[6]
    assert lower < 0 < 255 < upper, "the test needs a network that overshoots"
    step = (upper - lower) / 255
    assert f"the output's step would be {step:.2f} grey levels" in "\n".join(found.advice)
    (dark,) = report([noise(12, 14) // 4]).advice[-1:]
    assert "100 % below 0" in dark, "the test needs dark pictures that overshoot below"
    assert "step" not in dark
    calm = [np.random.default_rng(seed).integers(40, 215, (12, 14, 3), dtype=np.uint8) for seed in range(6)]
    assert "overshoot" not in advice([picture // 8 + 112 for picture in calm])
