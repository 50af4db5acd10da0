from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from picture_files import ICC, noise, opened, saved, smooth
from PIL import Image, ImageOps

from srquant.imaging import Picture, read_picture, write_picture


class TestRoundTrip:
    @settings(max_examples=150, deadline=None)
    @example(height=1, width=1, alpha=True, grey=False, suffix=".webp", seed=0)  # opaque alpha
    @given(
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        alpha=st.booleans(),
        grey=st.booleans(),
        suffix=st.sampled_from([".png", ".webp", ".tiff", ".tif", ".bmp", ".PNG"]),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_lossless_formats_keep_every_value(
        self, height: int, width: int, alpha: bool, grey: bool, suffix: str, seed: int
    ) -> None:
        rgb = noise(height, width, 3, seed=seed)
        if grey:
            rgb = np.repeat(rgb[..., :1], 3, axis=2)
        # half of the picture wholly transparent: its hidden colours must survive as well
        mask = noise(height, width, seed=seed + 1)
        mask[: height // 2] = 0
        given_picture = Picture(rgb, mask if alpha and suffix != ".bmp" else None, grey)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a{suffix}"
            write_picture(path, given_picture)
            back = read_picture(path)
            assert [p.name for p in Path(folder).iterdir()] == [path.name]
        np.testing.assert_array_equal(back.rgb, rgb)
        assert back.grey == (grey and suffix != ".webp")
        if given_picture.alpha is None or (suffix == ".webp" and mask.min() == 255):
            assert back.alpha is None  # libwebp stores no opaque alpha
        else:
            assert back.alpha is not None
            np.testing.assert_array_equal(back.alpha, mask)
        assert back.rgb.flags.c_contiguous

    def test_jpeg_is_close_and_quality_matters(self, tmp_path: Path) -> None:
        rgb = smooth(48, 40)
        write_picture(tmp_path / "good.jpg", Picture(rgb))
        write_picture(tmp_path / "bad.jpeg", Picture(rgb), quality=5)
        good = np.abs(read_picture(tmp_path / "good.jpg").rgb.astype(int) - rgb).mean()
        bad = np.abs(read_picture(tmp_path / "bad.jpeg").rgb.astype(int) - rgb).mean()
        assert good < 1.5 < bad

    def test_jpeg_keeps_full_chroma(self, tmp_path: Path) -> None:
        rgb = np.zeros((16, 16, 3), np.uint8)
        rgb[:, ::2, 0] = rgb[:, 1::2, 2] = 255
        write_picture(tmp_path / "a.jpg", Picture(rgb), quality=100)
        assert np.abs(read_picture(tmp_path / "a.jpg").rgb.astype(int) - rgb).max() < 12

    def test_grey_jpeg_stays_grey(self, tmp_path: Path) -> None:
        write_picture(tmp_path / "a.jpg", Picture(np.full((8, 8, 3), 77, np.uint8), grey=True))
        assert opened(tmp_path / "a.jpg").mode == "L"
        assert read_picture(tmp_path / "a.jpg").grey

    def test_grey_with_drifted_channels_is_written_as_their_mean(self, tmp_path: Path) -> None:
        rgb = np.array([[[10, 11, 13], [255, 255, 254]]], np.uint8)
        write_picture(tmp_path / "a.png", Picture(rgb, grey=True))
        assert read_picture(tmp_path / "a.png").rgb[..., 0].tolist() == [[11, 255]]


class TestModes:
    def test_grey(self, tmp_path: Path) -> None:
        values = noise(5, 7)
        picture = read_picture(saved(tmp_path / "a.png", Image.fromarray(values)))
        assert picture.grey
        assert picture.alpha is None
        np.testing.assert_array_equal(picture.rgb, np.repeat(values[..., None], 3, 2))

    def test_grey_with_alpha(self, tmp_path: Path) -> None:
        values = noise(5, 7, 2)
        picture = read_picture(saved(tmp_path / "a.png", Image.fromarray(values)))
        assert picture.grey
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.rgb[..., 2], values[..., 0])
        np.testing.assert_array_equal(picture.alpha, values[..., 1])

    def test_one_bit(self, tmp_path: Path) -> None:
        bits = noise(6, 9) > 127
        for name in ("a.png", "a.tif", "a.bmp"):
            picture = read_picture(saved(tmp_path / name, Image.fromarray(bits)))
            assert picture.grey
            np.testing.assert_array_equal(picture.rgb[..., 1], bits * 255)

    @pytest.mark.parametrize("transparent", [False, True])
    def test_palette(self, tmp_path: Path, transparent: bool) -> None:
        image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
        image.putpalette([250, 1, 2, 3, 240, 5, 6, 7, 230])
        options = {"transparency": bytes([0, 128, 255])} if transparent else {}
        picture = read_picture(saved(tmp_path / "a.png", image, **options))
        assert picture.rgb.tolist() == [[[250, 1, 2], [3, 240, 5], [6, 7, 230]]]
        assert not picture.grey
        if transparent:
            assert picture.alpha is not None
            assert picture.alpha.tolist() == [[0, 128, 255]]
        else:
            assert picture.alpha is None

    @pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7))])
    def test_transparent_colour_of_a_png(self, tmp_path: Path, mode: str, key: Any) -> None:
        image = Image.new(mode, (2, 1), key)
        image.putpixel((1, 0), 9 if mode == "L" else (9, 9, 9))
        picture = read_picture(saved(tmp_path / "a.png", image, transparency=key))
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[0, 255]]
        assert picture.rgb.tolist() == [[[7] * 3, [9] * 3]]
        assert picture.grey == (mode == "L")

    def test_cmyk_jpeg_is_converted_and_its_profile_dropped(self, tmp_path: Path) -> None:
        image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        picture = read_picture(saved(tmp_path / "a.jpg", image, quality=100, icc_profile=ICC))
        assert np.abs(picture.rgb.astype(int) - [0, 255, 255]).max() <= 3
        assert picture.icc is None

    def test_content_decides_not_the_suffix(self, tmp_path: Path) -> None:
        rgb = noise(4, 5, 3)
        path = saved(tmp_path / "a.png", Image.fromarray(rgb))
        np.testing.assert_array_equal(read_picture(path.rename(tmp_path / "a.jpg")).rgb, rgb)


class TestMetadata:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff", ".jpg"])
    def test_orientation_is_applied_and_forgotten(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        rgb = smooth(12, 20)
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "a camera"
        options = {"lossless": True} if suffix == ".webp" else {}
        path = saved(tmp_path / f"a{suffix}", Image.fromarray(rgb), exif=exif, **options)
        expected = ImageOps.exif_transpose(opened(path))
        assert expected is not None
        picture = read_picture(path)
        np.testing.assert_array_equal(picture.rgb, np.asarray(expected))
        write_picture(tmp_path / "b.png", picture)
        again = opened(tmp_path / "b.png")
        assert 0x0112 not in again.getexif()
        assert again.getexif()[0x010F] == "a camera"
        np.testing.assert_array_equal(np.asarray(again), picture.rgb)

    @pytest.mark.parametrize("source", [".png", ".webp", ".tiff", ".jpg"])
    @pytest.mark.parametrize("target", [".png", ".webp", ".tiff", ".jpg"])
    def test_icc_and_exif_survive(self, tmp_path: Path, source: str, target: str) -> None:
        exif = Image.Exif()
        exif[0x010F] = "a camera"
        exif.get_ifd(0x8769).update({0x9003: "2024:05:06 07:08:09", 0xA002: 8, 0xA003: 6})
        exif.get_ifd(0x8825)[1] = "N"
        path = saved(tmp_path / f"a{source}", Image.fromarray(smooth(6, 8)), icc_profile=ICC, exif=exif.tobytes())
        picture = read_picture(path)
        assert picture.icc == ICC
        big = Picture(np.repeat(np.repeat(picture.rgb, 2, 0), 2, 1), icc=picture.icc, exif=picture.exif)
        write_picture(tmp_path / f"b{target}", big)
        back = opened(tmp_path / f"b{target}")
        assert back.size == (16, 12)
        assert back.info["icc_profile"] == ICC
        kept = back.getexif()
        assert kept[0x010F] == "a camera"
        assert kept.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
        assert 0xA002 not in kept.get_ifd(0x8769)
        assert kept.get_ifd(0x8825)[1] == "N"
        if target != ".tiff":
            assert 256 not in kept
        write_picture(tmp_path / f"c{target}", big, keep_metadata=False)
        bare = opened(tmp_path / f"c{target}")
        assert "icc_profile" not in bare.info
        assert 0x010F not in bare.getexif()

    def test_damaged_exif_costs_nothing(self, tmp_path: Path) -> None:
        rgb = smooth(8, 8)
        for number, exif in enumerate((b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0junk", b"\0" * 9)):
            path = saved(tmp_path / f"{number}.png", Image.fromarray(rgb), exif=exif)
            np.testing.assert_array_equal(read_picture(path).rgb, rgb)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp"])
    def test_bad_metadata_never_fails_the_writing(self, tmp_path: Path, suffix: str) -> None:
        rgb = smooth(8, 8)
        too_long = b"Exif\0\0" + b"x" * 70_000
        path = tmp_path / f"a{suffix}"
        write_picture(path, Picture(rgb, icc=ICC, exif=too_long))
        back = read_picture(path)
        assert np.abs(back.rgb.astype(int) - rgb).max() < 12
        assert back.icc == (None if suffix == ".bmp" else ICC)

    def test_phone_photo_with_a_preview_is_read(self, tmp_path: Path) -> None:
        photo, preview = Image.fromarray(smooth(16, 24)), Image.new("RGB", (4, 4))
        path = tmp_path / "a.jpg"
        photo.save(path, format="MPO", save_all=True, append_images=[preview])
        assert read_picture(path).rgb.shape == (16, 24, 3)
