"""Engines that take pictures of one shape only, such as a LiteRT file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from upscaling_engines import BoxEngine, noise

import srquant
from srquant.config import QuantizationConfig
from srquant.engines import Engine, load, open_engine
from srquant.errors import UserError
from srquant.imaging import Picture, read_picture, write_picture
from srquant.networks import EDSR, IMDN, EDSRConfig, IMDNConfig, SRNetwork
from srquant.progress import Silent
from srquant.quantizers import QuantizedNetwork
from srquant.upscaling import count_tiles, upscale_path, upscale_pixels
from srquant.upscaling.tiles import is_mirrored


def fixed(shape: tuple[int, int], radius: int = 2, scale: int = 2, block: int = 1) -> BoxEngine:
    engine = BoxEngine(radius, scale, block=block)
    engine.shape = shape
    return engine


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_tiles_of_one_shape_give_the_whole_picture(
    height: int, width: int, rows: int, columns: int, radius: int, scale: int, block: int
) -> None:
    """Where the picture is as large as the shape, for which windows have to be more than halo."""
    whole = BoxEngine(radius, scale, block=block)
    margin = -(-(whole.halo or 0) // block) * block
    shape = 2 * margin + rows * block, 2 * margin + columns * block
    assume(height >= shape[0] - block + 1 and width >= shape[1] - block + 1)
    engine = fixed(shape, radius, scale, block)
    picture = noise(height, width)
    ticks: list[None] = []
    tiled = upscale_pixels(engine, picture, "auto", lambda: ticks.append(None))
    assert set(engine.shapes) == {(*shape, 3)}
    assert np.array_equal(tiled, upscale_pixels(whole, picture, None))
    assert len(ticks) == len(engine.shapes) == count_tiles(engine, height, width, "auto")


def test_no_more_tiles_than_needed() -> None:
    engine = fixed((20, 20))  # halo 2: the first and last keep 18 of 20, those between them 16
    assert [count_tiles(engine, side, 20, "auto") for side in (20, 21, 36, 37, 52, 53)] == [1, 2, 2, 3, 3, 4]


def test_a_smaller_picture_is_mirrored_and_only_its_last_pixels_see_it() -> None:
    engine, picture = fixed((20, 16)), noise(11, 16)
    assert is_mirrored(engine, 11, 16)
    assert is_mirrored(engine, 20, 15)
    assert not is_mirrored(engine, 20, 16)
    assert not is_mirrored(BoxEngine(), 1, 1)
    found = upscale_pixels(engine, picture)
    assert engine.shapes == [(20, 16, 3)]
    whole = upscale_pixels(BoxEngine(), picture)
    assert found.shape == whole.shape
    assert np.array_equal(found[:18], whole[:18])
    assert not np.array_equal(found[18:], whole[18:])
    mirrored = np.concatenate([picture, picture[:1:-1]])
    assert np.array_equal(found, upscale_pixels(BoxEngine(), mirrored)[:22])


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (50, 1)])
def test_very_small_pictures_are_mirrored_again_and_again(size: tuple[int, int]) -> None:
    engine = fixed((20, 16))
    assert upscale_pixels(engine, noise(*size)).shape == (2 * size[0], 2 * size[1], 3)
    assert set(engine.shapes) == {(20, 16, 3)}


def test_what_a_fixed_shape_cannot_do_is_told() -> None:
    with pytest.raises(UserError, match="'box' takes tiles of 20x16 only: tile has to be 'auto', or whole"):
        upscale_pixels(fixed((20, 16)), noise(30, 30), 8)
    for size in ((30, 30), (20, 15), (40, 16)):
        with pytest.raises(UserError, match=rf"takes pictures of 20x16 only, {size[0]}x{size[1]} is not taken as a wh"):
            upscale_pixels(fixed((20, 16)), noise(*size), None)
    assert upscale_pixels(fixed((20, 16)), noise(20, 16), None).shape == (40, 32, 3)
    with pytest.raises(
        UserError, match="windows of 20x4 are all halo, 2 pixels on every side; export 'box' with a --s"
    ):
        upscale_pixels(fixed((20, 4)), noise(30, 30))
    assert upscale_pixels(fixed((20, 4)), noise(30, 4)).shape == (60, 8, 3)
    engine = fixed((20, 16))
    engine.halo = None
    assert upscale_pixels(engine, noise(20, 16)).shape == (40, 32, 3)
    for size in ((21, 16), (20, 15)):
        with pytest.raises(UserError, match=rf"takes 20x16 only; export it with --shape {size[0]}x{size[1]}"):
            upscale_pixels(engine, noise(*size))


class Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_the_user_is_told_of_mirrored_pictures(tmp_path: Path) -> None:
    for name, size in (("small.png", (9, 30)), ("large.png", (30, 30))):
        write_picture(tmp_path / name, Picture(noise(*size), None, False))
    listener = Listener()
    upscale_path(fixed((20, 16)), tmp_path, tmp_path / "out", progress=listener)
    (warning,) = listener.warnings
    assert warning.startswith("small.png: smaller than the engine's shape")


# Files ---------------------------------------------------------------------------------------------------------


def file_engine(network: SRNetwork, folder: Path, shape: tuple[int, int]) -> tuple[Engine, Engine]:
    """A LiteRT file's engine, and the reference."""
    pytest.importorskip("ai_edge_litert")
    quantized = QuantizedNetwork(network, QuantizationConfig())
    crop = torch.from_numpy(noise(32, 32)).permute(2, 0, 1)[None].float()
    quantized.calibrate(lambda: [crop])
    srquant.export(quantized, folder / "a.tflite", shape=shape, allow_float=True)
    return open_engine(load(folder / "a.tflite"), threads=1), open_engine(quantized, "reference")


@pytest.mark.parametrize("shape", [(24, 24), (20, 41)])
def test_tiles_of_a_litert_file_are_the_reference_on_the_whole(shape: tuple[int, int], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EDSR(EDSRConfig(scale=2, blocks=2, width=8)).eval()
    engine, reference = file_engine(network, tmp_path, shape)
    for size in [(41, 57), shape, (shape[0] + 1, shape[1])]:
        picture = noise(*size)
        assert np.array_equal(upscale_pixels(engine, picture), reference.run(picture)), size
    source, target = tmp_path / "p.png", tmp_path / "q.png"
    write_picture(source, Picture(noise(41, 57), None, False))
    assert srquant.upscale(tmp_path / "a.tflite", source, target) == [target]
    assert np.array_equal(read_picture(target).rgb, reference.run(noise(41, 57)))


def test_a_file_of_a_network_with_attention_takes_its_shape_only(tmp_path: Path) -> None:
    network = IMDN(IMDNConfig(scale=2, blocks=1, width=16, reduction=4)).eval()
    engine, reference = file_engine(network, tmp_path, (12, 14))
    picture = noise(12, 14)
    assert np.abs(upscale_pixels(engine, picture).astype(int) - reference.run(picture)).max() <= 1
    with pytest.raises(UserError, match=r"'imdn' looks at the whole picture, .* export it with --shape 13x14"):
        upscale_pixels(engine, noise(13, 14))
