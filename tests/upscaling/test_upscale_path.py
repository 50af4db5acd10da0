from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upscaling_engines import BoxEngine, NearestEngine, noise

from srquant.errors import UserError
from srquant.imaging import Picture, read_picture, write_picture
from srquant.upscaling import upscale_path


class Ticks:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, name: str, tiles: int) -> None:
        self.calls.append((name, tiles))

    def advance(self) -> None:
        self.calls.append(1)

    def finish(self) -> None:
        self.calls.append("end")


def save(path: Path, *, alpha: bool = False, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_picture(path, Picture(noise(6, 8, seed=seed), noise(6, 8, 1)[..., 0] if alpha else None))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_to_file(tmp_path: Path) -> None:
    source, target = save(tmp_path / "in.png", alpha=True), tmp_path / "out.webp"
    ticks = Ticks()
    assert upscale_path(NearestEngine(), source, target, tile=4, progress=ticks) == [target]
    expected = read_picture(source).rgb.repeat(2, axis=0).repeat(2, axis=1)
    result = read_picture(target)
    assert result.alpha is not None
    assert np.array_equal(result.rgb[result.alpha > 0], expected[result.alpha > 0])
    assert ticks.calls == [("in.png", 8), *[1] * 8, "end"]
    assert names(tmp_path) == ["in.png", "out.webp"]


def test_file_to_folder_is_named_by_the_pattern(tmp_path: Path) -> None:
    source = save(tmp_path / "a.b.png")
    assert upscale_path(NearestEngine(), source, tmp_path) == [tmp_path / "a.b_x2.png"]
    named = upscale_path(NearestEngine(), source, tmp_path, pattern="{{{scale}}}-{name}{suffix}", suffix=".bmp")
    assert named == [tmp_path / "{2}-a.b.bmp"]


def test_metadata_goes_along_or_not(tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    write_picture(source, Picture(noise(3, 3), icc=b"not a real profile, but bytes"))
    assert upscale_path(NearestEngine(), source, tmp_path / "a.png")
    assert upscale_path(NearestEngine(), source, tmp_path / "b.png", keep_metadata=False)
    assert read_picture(tmp_path / "a.png").icc == b"not a real profile, but bytes"
    assert read_picture(tmp_path / "b.png").icc is None


def test_folder_to_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("b.png", "a.jpg", "c.bmp")):
        save(tmp_path / "in" / name, seed=number)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    target = tmp_path / "new" / "out"
    written = upscale_path(NearestEngine(), tmp_path / "in", target)
    assert written == [target / "a_x2.jpg", target / "b_x2.png", target / "c_x2.bmp"]
    assert names(target) == ["a_x2.jpg", "b_x2.png", "c_x2.bmp"]


def test_an_interrupted_folder_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        save(tmp_path / "in" / name, seed=number)
    target = tmp_path / "out"
    engine = NearestEngine()
    engine.fails_at = 6  # four tiles for each picture
    ticks = Ticks()
    with pytest.raises(RuntimeError, match="killed"):
        upscale_path(engine, tmp_path / "in", target, tile=4, progress=ticks)
    assert names(target) == ["a_x2.png"]
    assert ticks.calls[-1] == "end"
    before = (target / "a_x2.png").stat().st_mtime_ns
    engine.fails_at = None
    assert upscale_path(engine, tmp_path / "in", target) == [target / "b_x2.png", target / "c_x2.png"]
    assert (target / "a_x2.png").stat().st_mtime_ns == before
    assert upscale_path(engine, tmp_path / "in", target) == []
    assert len(upscale_path(engine, tmp_path / "in", target, overwrite=True)) == 3


def test_a_failure_leaves_the_older_result(tmp_path: Path) -> None:
    source, target = save(tmp_path / "in.png"), save(tmp_path / "out.png", seed=5)
    before = target.read_bytes()
    engine = NearestEngine()
    engine.fails_at = 3
    with pytest.raises(RuntimeError, match="killed"):
        upscale_path(engine, source, target, tile=4, overwrite=True)
    assert target.read_bytes() == before
    assert names(tmp_path) == ["in.png", "out.png"]


def test_unreadable_pictures_are_told_of_at_the_end(tmp_path: Path) -> None:
    save(tmp_path / "in" / "d.png")
    (tmp_path / "in" / "a.png").write_bytes(b"rubbish")
    (tmp_path / "in" / "c.png").write_bytes(save(tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"^2 of 3 pictures could not be enlarged.*first: .*a\.png"):
        upscale_path(NearestEngine(), tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["d_x2.png"]


def test_alpha_into_jpeg_is_refused_before_any_run(tmp_path: Path) -> None:
    source, target = save(tmp_path / "in.png", alpha=True), tmp_path / "out.jpg"
    engine = NearestEngine()
    with pytest.raises(UserError, match="holds no alpha") as caught:
        upscale_path(engine, source, target)
    assert str(caught.value).startswith(f"cannot write '{target}': JPEG")
    with pytest.raises(UserError, match="quality 101"):
        upscale_path(engine, save(tmp_path / "opaque.png"), target, quality=101)
    assert engine.shapes == []
    assert names(tmp_path) == ["in.png", "opaque.png"]


def test_a_result_too_large_for_its_format_is_refused_before_any_run(tmp_path: Path) -> None:
    source = tmp_path / "long.png"
    write_picture(source, Picture(np.zeros((1, 9000, 3), np.uint8)))
    engine = NearestEngine()
    with pytest.raises(UserError, match="too large for WEBP"):
        upscale_path(engine, source, tmp_path / "out.webp")
    assert engine.shapes == []


def test_in_a_folder_alpha_into_jpeg_fails_alone(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", alpha=True)
    save(tmp_path / "in" / "b.png")
    with pytest.raises(UserError, match=r"^1 of 2 .*a_x2\.jpg.*holds no alpha"):
        upscale_path(NearestEngine(), tmp_path / "in", tmp_path / "out", suffix=".jpg")
    assert names(tmp_path / "out") == ["b_x2.jpg"]


@pytest.mark.parametrize(("first", "second"), [("a.png", "a.jpg"), ("a.png", "A.bmp")])
def test_two_sources_of_one_result_are_refused(tmp_path: Path, first: str, second: str) -> None:
    save(tmp_path / "in" / first)
    save(tmp_path / "in" / second)
    with pytest.raises(UserError, match="would both become"):
        upscale_path(NearestEngine(), tmp_path / "in", tmp_path / "out", suffix=".png")
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    source = save(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(source)
    for target in (source, source.parent, link):
        with pytest.raises(UserError, match="is the source itself"):
            upscale_path(NearestEngine(), source, target, pattern="{name}{suffix}", overwrite=True)
    with pytest.raises(UserError, match="is the source folder itself"):
        upscale_path(NearestEngine(), source.parent, tmp_path / "out" / ".." / "in")


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source, target = save(tmp_path / "in.png"), save(tmp_path / "out.png")
    with pytest.raises(UserError, match="exists already; overwrite replaces it"):
        upscale_path(NearestEngine(), source, target)
    assert upscale_path(NearestEngine(), source, target, overwrite=True) == [target]
    assert read_picture(target).rgb.shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{nam}{suffix}", "unknown field of the pattern 'nam'.*did you mean 'name'"),
        ("{}{suffix}", "unknown field of the pattern ''"),
        ("{name.stem}{suffix}", "unknown field of the pattern 'name.stem'"),
        ("{name", "is broken"),
        ("{scale:03d}{suffix}", "takes no format"),
        ("{name!r}{suffix}", "takes no format"),
        ("sub/{name}{suffix}", "has to be a file name"),
        ("{name}_x{scale}", "has to be a file name that ends in"),
        ("", "has to be a file name"),
    ],
)
def test_bad_patterns_are_refused(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        upscale_path(NearestEngine(), save(tmp_path / "in.png"), tmp_path, pattern=pattern)


def test_paths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "in" / "a.png")
    engine = NearestEngine()
    cases: list[tuple[Path, Path, dict[str, Any], str]] = [
        (tmp_path / "none.png", tmp_path / "out.png", {}, "there is no picture"),
        (source, tmp_path / "none", {}, "neither a folder that is there nor a picture"),
        (source, tmp_path / "none" / "out.png", {}, "the folder .* does not exist"),
        (source, tmp_path / "out.png", {"suffix": ".jpg"}, "does not end in the suffix '.jpg'"),
        (source, tmp_path / "out.png", {"suffix": "png"}, "unknown picture suffix 'png'.*did you mean '.png'"),
        (source.parent, source, {}, "is a file"),
        (source.parent, tmp_path / "out.png", {}, "names a picture"),
        (source.parent, source / "out", {}, "cannot make the folder"),
        (tmp_path, tmp_path / "out", {}, "no pictures in"),
        (source, tmp_path / "out.png", {"tile": 0}, "tile is 0"),
    ]
    for start, target, options, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            upscale_path(engine, start, target, **options)
        assert "\n" not in str(caught.value)
    assert engine.shapes == []
    assert names(tmp_path) == ["in"]
    with pytest.raises(UserError, match="allowed are networks for 3"):
        upscale_path(BoxEngine(channels=2), source, tmp_path / "out.png")


def test_a_folder_that_takes_no_files_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    source = save(tmp_path / "a.png")
    monkeypatch.setattr("srquant.upscaling.files.tempfile.TemporaryDirectory", refused)
    with pytest.raises(UserError, match=r"out.png': the folder '.*' is not writable"):
        upscale_path(NearestEngine(), source, tmp_path / "out.png")


def test_deep_pictures_are_reduced_only_when_asked(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"16 bits per channel.* --to-8bit \(in Python reduce_depth\)$"):
        upscale_path(NearestEngine(), tmp_path / "deep.png", tmp_path / "out.png")
    upscale_path(NearestEngine(), tmp_path / "deep.png", tmp_path / "out.png", reduce_depth=True)
    result = read_picture(tmp_path / "out.png")
    assert result.grey
    assert (result.rgb == 255).all()
