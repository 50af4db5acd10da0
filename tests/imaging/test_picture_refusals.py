from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import ICC, noise, one_line, png16, rounded, saved, smooth
from PIL import Image

from srquant.errors import UserError
from srquant.imaging import PICTURE_SUFFIXES, Picture, find_pictures, read_picture, write_picture


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
