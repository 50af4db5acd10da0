from __future__ import annotations

import io
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from srquant.errors import UserError
from srquant.imaging import PICTURE_SUFFIXES, Picture, find_pictures, read_picture, write_picture

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 5, y * 7, (x + y) * 3], axis=2).clip(0, 255).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def opened(path: Path) -> Image.Image:
    """The file as Pillow alone decodes it, without a file left open."""
    return Image.open(io.BytesIO(path.read_bytes()))


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def png16(path: Path, samples: np.ndarray) -> Path:
    """A 16-bit PNG written by hand: uint16 [H,W,C], C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def rounded(samples: np.ndarray) -> np.ndarray:
    return np.floor(samples.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)


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


class TestDepth:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_16_bit_png_is_refused_or_rounded(self, tmp_path: Path, channels: int) -> None:
        samples = np.random.default_rng(1).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
        samples[0, :6] = np.array([0, 128, 129, 65406, 65407, 65535], np.uint16)[:, None]
        path = png16(tmp_path / "deep.png", samples)
        with pytest.raises(UserError) as error:
            read_picture(path)
        one_line(error, "deep.png", "16 bits", "reduce_depth")
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

    def test_the_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        path = png16(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint16))
        with pytest.raises(UserError) as error:
            read_picture(path, reduce_depth=True)
        one_line(error, "a.png", "imagecodecs", "srquant[images]")


def attempt(path: Path, *, reduce_depth: bool = False) -> Picture | None:
    """The picture, or None where it is refused in one line that names the file."""
    try:
        return read_picture(path, reduce_depth=reduce_depth)
    except UserError as error:
        refusal = str(error)
    assert str(path) in refusal
    assert "\n" not in refusal
    return None


def cut_cases() -> dict[str, tuple[str, dict[str, Any], Image.Image]]:
    colour, veiled = Image.fromarray(noise(13, 11, 3)), Image.fromarray(noise(13, 11, 4))
    return {
        "png": (".png", {}, veiled),
        "png palette": (".png", {}, colour.quantize(16)),
        "jpeg": (".jpg", {"quality": 90, "icc_profile": ICC[:200]}, colour),
        "jpeg progressive": (".jpg", {"quality": 90, "progressive": True}, colour),
        "jpeg grey": (".jpg", {"quality": 90}, colour.convert("L")),
        "webp": (".webp", {"lossless": True}, veiled),
        "webp lossy": (".webp", {"quality": 80}, colour),
        "tiff": (".tif", {}, veiled),
        "tiff deflate": (".tif", {"compression": "tiff_adobe_deflate"}, colour),
        "tiff lzw strips": (".tif", {"compression": "tiff_lzw", "tiffinfo": {278: 4}}, colour),
        "bmp": (".bmp", {}, colour),
        "bmp grey": (".bmp", {}, colour.convert("L")),
    }


class TestRefusals:
    @pytest.mark.parametrize("case", cut_cases())
    def test_cut_at_every_byte_is_never_half_a_picture(self, tmp_path: Path, case: str) -> None:
        suffix, options, image = cut_cases()[case]
        path = saved(tmp_path / f"a{suffix}", image, **options)
        whole, data = read_picture(path), path.read_bytes()
        refused = 0
        for length in range(len(data)):
            path.write_bytes(data[:length])
            picture = attempt(path)
            if picture is None:
                refused += 1
                continue
            np.testing.assert_array_equal(picture.rgb, whole.rgb, err_msg=f"cut at {length} of {len(data)}")
            assert (picture.alpha is None) == (whole.alpha is None)
            if whole.alpha is not None:
                np.testing.assert_array_equal(picture.alpha, whole.alpha)
        assert refused > 0.6 * len(data)

    @pytest.mark.parametrize("kind", ["png", "tiff", "tiff zlib", "tiff strips", "tiff planes"])
    def test_deep_pictures_cut_anywhere(self, tmp_path: Path, kind: str) -> None:
        tifffile = pytest.importorskip("tifffile")
        pytest.importorskip("imagecodecs")
        samples = np.random.default_rng(5).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
        path = tmp_path / "a.tif"
        if kind == "png":
            png16(path, samples)
        else:
            options: dict[str, Any] = {
                "tiff": {},
                "tiff zlib": {"compression": "zlib"},
                "tiff strips": {"rowsperstrip": 2},
                "tiff planes": {"planarconfig": "separate"},
            }[kind]
            stored = np.moveaxis(samples, 2, 0) if kind == "tiff planes" else samples
            tifffile.imwrite(path, stored, photometric="rgb", **options)
        data = path.read_bytes()
        refused = 0
        for length in range(len(data)):
            path.write_bytes(data[:length])
            picture = attempt(path, reduce_depth=True)
            if picture is None:
                refused += 1
            else:
                np.testing.assert_array_equal(picture.rgb, rounded(samples))
        assert refused > 0.6 * len(data)

    @settings(max_examples=200, deadline=None)
    @given(data=st.binary(max_size=200), magic=st.sampled_from([b"", b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF"]))
    def test_junk_is_one_line(self, data: bytes, magic: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.png"
            path.write_bytes(magic + data)
            with pytest.raises(UserError) as error:
                read_picture(path)
        one_line(error, "a.png")

    def test_missing_folder_empty_and_foreign(self, tmp_path: Path) -> None:
        (tmp_path / "empty.png").touch()
        saved(tmp_path / "a.gif", Image.new("L", (3, 3)))
        for name, words in {
            "no.png": "there is no picture",
            "": "is a folder",
            "empty.png": "is empty",
            "a.gif": "known formats: PNG, JPEG, WebP, TIFF, BMP",
        }.items():
            with pytest.raises(UserError) as error:
                read_picture(tmp_path / name)
            one_line(error, words, str(tmp_path / name))

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
    def test_several_frames(self, tmp_path: Path, suffix: str) -> None:
        frames = [Image.fromarray(noise(4, 4, 3, seed=n)) for n in range(3)]
        path = saved(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:])
        with pytest.raises(UserError) as error:
            read_picture(path)
        one_line(error, "3 frames", path.name)

    @pytest.mark.parametrize("limit", [50, 90])
    def test_bombs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        path = saved(tmp_path / "a.png", Image.new("L", (11, 11)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 121 is above twice 50, below twice 90
        with pytest.raises(UserError) as error:
            read_picture(path)
        one_line(error, "a.png", "121 pixels", str(limit))

    def test_writing(self, tmp_path: Path) -> None:
        veiled = Picture(noise(3, 4, 3), noise(3, 4))
        for name in ("a.jpg", "a.bmp"):
            with pytest.raises(UserError, match=r"no alpha; \.png, \.webp and \.tiff do"):
                write_picture(tmp_path / name, veiled)
        with pytest.raises(UserError, match=r"unknown suffix '\.gif'; allowed: \.png, \.jpg"):
            write_picture(tmp_path / "a.gif", veiled)
        with pytest.raises(UserError, match="quality 0"):
            write_picture(tmp_path / "a.png", veiled, quality=0)
        with pytest.raises(UserError, match=r"16384x1 is too large for WEBP.*16383"):
            write_picture(tmp_path / "a.webp", Picture(np.zeros((1, 16384, 3), np.uint8)))
        with pytest.raises(UserError, match="does not exist"):
            write_picture(tmp_path / "no" / "a.png", veiled)
        assert not list(tmp_path.iterdir())

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.png"
        write_picture(path, Picture(noise(3, 4, 3)))
        before = path.read_bytes()

        def full_disk(*_: object, **__: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(UserError, match="No space left"):
            write_picture(path, Picture(noise(9, 9, 3)))
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

    def test_picture_checks_its_arrays(self) -> None:
        for rgb in (np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8)):
            with pytest.raises(UserError, match=r"needs uint8 \[H,W,3\]"):
                Picture(rgb)
        with pytest.raises(UserError, match="alpha must be"):
            Picture(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8))


class TestFindPictures:
    def test_sorted_visible_pictures(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.webp", "c.jpeg", ".hidden.png", "notes.txt", "d.gif"):
            (tmp_path / name).touch()
        (tmp_path / "folder.png").mkdir()
        assert [path.name for path in find_pictures(tmp_path)] == ["a.webp", "b.PNG", "c.jpeg"]

    def test_nothing_to_find(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no pictures in"):
            find_pictures(tmp_path)
        with pytest.raises(UserError, match="there is no folder"):
            find_pictures(tmp_path / "no")
        (tmp_path / "a.png").touch()
        with pytest.raises(UserError, match="is not a folder"):
            find_pictures(tmp_path / "a.png")

    def test_suffixes(self) -> None:
        assert PICTURE_SUFFIXES == (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def test_reading_warns_of_nothing(tmp_path: Path) -> None:
    # a TIFF tag of a wrong length makes Pillow warn; warnings are errors in these tests
    buffer = io.BytesIO()
    Image.fromarray(smooth(4, 4)).save(buffer, format="TIFF", tiffinfo={305: "a program with a name"})
    data = bytearray(buffer.getvalue())
    entry = data.index(struct.pack("<HH", 305, 2))
    struct.pack_into("<I", data, entry + 4, 1_000_000)
    (tmp_path / "a.tif").write_bytes(data)
    assert read_picture(tmp_path / "a.tif").rgb.shape == (4, 4, 3)
