from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import one_line, png16, rounded, saved
from PIL import Image

from srquant.errors import DepthError, UserError
from srquant.imaging import read_picture


class TestDepth:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_16_bit_png_is_refused_or_rounded(self, tmp_path: Path, channels: int) -> None:
        samples = np.random.default_rng(1).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
        samples[0, :6] = np.array([0, 128, 129, 65406, 65407, 65535], np.uint16)[:, None]
        path = png16(tmp_path / "deep.png", samples)
        with pytest.raises(UserError) as error:
            read_picture(path)
        one_line(error, "deep.png", "16 bits", "convert it to 8 bit")
        assert "to-8bit" not in str(error.value)
        if channels > 1:
            pytest.importorskip("imagecodecs")
        picture = read_picture(path, reduce_depth=True)
        expected = rounded(samples)
        np.testing.assert_array_equal(
            picture.rgb, expected[..., :3] if channels > 2 else np.repeat(expected[..., :1], 3, 2)
        )
        assert picture.grey == (channels < 3)
        if channels in (2, 4):
            assert picture.alpha is not None
            np.testing.assert_array_equal(picture.alpha, expected[..., -1])
        else:
            assert picture.alpha is None

    @pytest.mark.parametrize("shape", [(9, 11), (9, 11, 3), (9, 11, 4)])
    @pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_16_bit_tiff(self, tmp_path: Path, shape: tuple[int, ...], compression: str | None, planar: str) -> None:
        tifffile = pytest.importorskip("tifffile")
        pytest.importorskip("imagecodecs")
        samples = np.random.default_rng(2).integers(0, 65536, shape, dtype=np.uint16)
        stored = np.moveaxis(samples, 2, 0) if planar == "separate" and len(shape) == 3 else samples
        path = tmp_path / "deep.tif"
        tifffile.imwrite(
            path,
            stored,
            photometric="rgb" if len(shape) == 3 else "minisblack",
            planarconfig=planar if len(shape) == 3 else None,
            extrasamples=["unassalpha"] if shape[2:] == (4,) else None,
            compression=compression,
        )
        with pytest.raises(UserError, match="16 bits"):
            read_picture(path)
        picture = read_picture(path, reduce_depth=True)
        expected = rounded(samples)
        np.testing.assert_array_equal(
            picture.rgb, expected[..., :3] if len(shape) == 3 else np.repeat(expected[..., None], 3, 2)
        )

    @pytest.mark.parametrize("shape", [(9, 11), (9, 11, 3)])
    def test_16_bit_tiff_is_turned_once(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        tifffile = pytest.importorskip("tifffile")
        samples = np.random.default_rng(3).integers(0, 65536, shape, dtype=np.uint16)
        path = tmp_path / "deep.tif"
        tifffile.imwrite(
            path,
            samples,
            photometric="rgb" if len(shape) == 3 else "minisblack",
            extratags=[(274, 3, 1, 6, True)],
        )
        picture = read_picture(path, reduce_depth=True)
        channel = samples if len(shape) == 2 else samples[..., 0]
        np.testing.assert_array_equal(picture.rgb[..., 0], np.rot90(rounded(channel), -1))

    @pytest.mark.parametrize("options", [{"byteorder": ">"}, {"bigtiff": True}])
    def test_16_bit_tiff_of_other_headers(self, tmp_path: Path, options: dict[str, Any]) -> None:
        tifffile = pytest.importorskip("tifffile")
        samples = np.random.default_rng(4).integers(0, 65536, (5, 6, 3), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "deep.tif", samples, photometric="rgb", **options)
        with pytest.raises(UserError, match="16 bits"):
            read_picture(tmp_path / "deep.tif")
        picture = read_picture(tmp_path / "deep.tif", reduce_depth=True)
        np.testing.assert_array_equal(picture.rgb, rounded(samples))

    def test_16_bit_tiff_from_white_to_black_is_refused(self, tmp_path: Path) -> None:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6), np.uint16), photometric="miniswhite")
        with pytest.raises(UserError) as error:
            read_picture(tmp_path / "a.tif", reduce_depth=True)
        one_line(error, "a.tif", "MINISWHITE")

    @pytest.mark.parametrize("dtype", [np.float32, np.uint32])
    def test_32_bits_cannot_be_reduced(self, tmp_path: Path, dtype: type) -> None:
        path = saved(tmp_path / "a.tif", Image.fromarray(np.zeros((3, 4), dtype)))
        for allow in (False, True):
            with pytest.raises(UserError) as error:
                read_picture(path, reduce_depth=allow)
            one_line(error, "a.tif", "32 bits")
            assert not isinstance(error.value, DepthError)

    def test_the_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        path = png16(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint16))
        with pytest.raises(UserError) as error:
            read_picture(path, reduce_depth=True)
        one_line(error, "a.png", "imagecodecs", "srquant[images]")
