from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from srquant.errors import UserError, missing_package, unknown
from srquant.files import atomic_path, sha256


def test_a_file_appears_whole_with_the_usual_rights(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        assert not target.exists()
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_older_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("older")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for text in ("one", "two"):
        with atomic_path(target) as temporary:
            temporary.write_text(text)
        assert target.read_text() == text


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    def enter(target: Path) -> None:
        with atomic_path(target):
            pytest.fail("the block must not run")

    with pytest.raises(UserError, match="it is a folder"):
        enter(tmp_path)
    with pytest.raises(UserError, match=r"the folder '.*missing' does not exist"):
        enter(tmp_path / "missing" / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="does not exist"):
        enter(tmp_path / "file" / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_of_the_system_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srquant.files.tempfile.mkstemp", full)
    with (
        pytest.raises(UserError, match=r"cannot write '.*a.json': No space left on device"),
        atomic_path(tmp_path / "a.json"),
    ):
        pytest.fail("the block must not run")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_the_words_of_errors() -> None:
    assert str(unknown("engine", "torhc", ["torch", "onnx"])) == (
        "unknown engine 'torhc'; known: torch, onnx; did you mean 'torch'?"
    )
    assert str(unknown("engine", "zzz", ["torch"])) == "unknown engine 'zzz'; known: torch"
    many = [f"body-{i}" for i in range(24)]
    assert str(unknown("tensor", "body-3x", many)).startswith(
        "unknown tensor 'body-3x'; known: body-0, body-1, body-2, "
    )
    assert str(unknown("tensor", "tale", [*many, "tail"], "the list")) == (
        "unknown tensor 'tale'; known: 25 ('the list' lists them), such as tail; did you mean 'tail'?"
    )
    assert str(unknown("tensor", "zzz", [*many, "tail"])) == (
        "unknown tensor 'zzz'; known: 25, such as body-0, body-1, body-2"
    )
    assert isinstance(missing_package("onnx", "export", "onnx"), ValueError)
    assert str(missing_package("p", "x", "e")) == "x needs the package 'p': pip install 'srquant[e]'"
