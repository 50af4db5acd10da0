from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upscaling_engines import BoxEngine, noise

from srquant.config import QuantizationConfig
from srquant.engines import Engine, open_engine
from srquant.errors import UserError
from srquant.networks import EDSR, IMDN, EDSRConfig, IMDNConfig
from srquant.quantizers import QuantizedNetwork
from srquant.upscaling import count_tiles, upscale_pixels

SIDES = st.integers(1, 40)


@given(SIDES, SIDES, st.integers(1, 45), st.integers(0, 4), st.sampled_from([1, 2, 3]), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_tiles_give_the_whole_picture(height: int, width: int, tile: int, radius: int, scale: int, block: int) -> None:
    engine = BoxEngine(radius, scale, block=block)
    picture = noise(height, width)
    whole = upscale_pixels(engine, picture, None)
    assert len(engine.shapes) == 1
    engine.shapes.clear()
    ticks: list[None] = []
    tiled = upscale_pixels(engine, picture, tile, lambda: ticks.append(None))
    assert tiled.shape == (height * scale, width * scale, 3)
    assert np.array_equal(tiled, whole)
    assert len(ticks) == len(engine.shapes) == count_tiles(engine, height, width, tile)
    assert len(set(engine.shapes)) == 1, "a runtime should plan one shape per picture"


def test_a_halo_too_small_is_noticed() -> None:
    picture = noise(23, 31)
    whole = upscale_pixels(BoxEngine(3), picture, None)
    assert np.array_equal(upscale_pixels(BoxEngine(3), picture, 7), whole)
    assert not np.array_equal(upscale_pixels(BoxEngine(3, halo=2), picture, 7), whole)


def test_windows_hold_the_tile_and_its_halo_only() -> None:
    engine = BoxEngine(2)
    upscale_pixels(engine, noise(60, 45), 10)
    assert set(engine.shapes) == {(14, 13, 3)}  # 6 x 5 equal pieces of 10 x 9
    assert len(engine.shapes) == 30


def test_auto_bounds_the_run_and_takes_small_pictures_whole() -> None:
    engine = BoxEngine(1, halo=20)
    upscale_pixels(engine, noise(500, 500), "auto")
    assert engine.shapes == [(500, 500, 3)]
    assert count_tiles(engine, 512, 512, "auto") == 1
    assert count_tiles(engine, 1080, 1920, "auto") == 15
    engine.shapes.clear()
    upscale_pixels(engine, noise(513, 600), "auto")
    assert len(engine.shapes) == 4
    assert max(max(shape[:2]) for shape in engine.shapes) <= 512
    engine.name = "onnxruntime"
    assert count_tiles(engine, 320, 320, "auto") == 1
    assert count_tiles(engine, 1080, 1920, "auto") == 28


def test_auto_runs_a_global_network_whole() -> None:
    engine = BoxEngine()
    engine.halo = None
    upscale_pixels(engine, noise(600, 600), "auto")
    assert engine.shapes == [(600, 600, 3)]
    with pytest.raises(UserError, match=r"the network looks at the whole picture \(channel attention, or gates"):
        upscale_pixels(engine, noise(6, 6), 4)


@pytest.mark.parametrize("tile", [0, -3, 2.5, True, "whole", "16", np.float32(3)])
def test_what_is_no_tile_is_refused(tile: Any) -> None:
    with pytest.raises(UserError, match=r"tile is .* allowed: a whole number"):
        upscale_pixels(BoxEngine(), noise(4, 4), tile)


@pytest.mark.parametrize("picture", [noise(4, 4, 1), noise(4, 4)[..., 0], noise(4, 4) / 255, noise(0, 4)])
def test_what_is_no_picture_is_refused(picture: Any) -> None:
    with pytest.raises(UserError, match=r"expected uint8 pixels \[H,W,3\]"):
        upscale_pixels(BoxEngine(), picture)


@pytest.fixture(scope="module")
def network() -> EDSR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EDSR(EDSRConfig(scale=2, blocks=2, width=8)).eval()


@pytest.fixture(scope="module")
def quantized(network: EDSR) -> QuantizedNetwork:
    result = QuantizedNetwork(network, QuantizationConfig())
    crop = torch.from_numpy(noise(32, 32)).permute(2, 0, 1)[None].float()
    result.calibrate(lambda: [crop])
    return result


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_float_engines_are_bit_identical(network: EDSR, name: str) -> None:
    if name != "torch":
        pytest.importorskip(name)
    _same_for_all_tiles(open_engine(network, name, threads=1))


@pytest.mark.parametrize("name", ["simulate", "reference", "torch", "onnxruntime", "openvino"])
def test_quantized_engines_are_bit_identical(quantized: QuantizedNetwork, name: str) -> None:
    if name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    _same_for_all_tiles(open_engine(quantized, name, threads=1))


def test_a_network_with_attention_runs_whole_only() -> None:
    engine = open_engine(IMDN(IMDNConfig(scale=2, blocks=1, width=16, reduction=4)).eval(), "torch")
    assert engine.halo is None
    assert upscale_pixels(engine, noise(9, 7), "auto").shape == (18, 14, 3)
    with pytest.raises(UserError, match="'imdn' cannot be run in tiles of 8"):
        upscale_pixels(engine, noise(9, 7), 8)


def _same_for_all_tiles(engine: Engine) -> None:
    assert engine.halo == 8
    picture = noise(41, 57)
    whole = upscale_pixels(engine, picture, None)
    assert whole.std() > 1
    for tile in (5, 16):
        assert np.array_equal(upscale_pixels(engine, picture, tile), whole), f"tile {tile}"
    if engine.name == "torch":  # would one pixel less be noticed?
        engine.halo = 1
        assert not np.array_equal(upscale_pixels(engine, picture, 5), whole)
