from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srquant.errors import UserError
from srquant.training import load_checkpoint
from srquant.training.checkpoint import Kind, clean_leftovers, find_checkpoint, save_checkpoint


def save(folder: Path, step: int, kind: Kind = "last", size: int = 10) -> Path:
    facts = {"step": step, "epoch": 1, "score": None, "config": {"epochs": 2}, "description": {"method": "m"}}
    return save_checkpoint(folder, kind, facts, {"values": torch.full((size,), float(step)), "plain": [1, "a", None]})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 7)
    got = load_checkpoint(tmp_path, "last")
    assert (got.step, got.epoch, got.score) == (7, 1, None)
    assert (got.config, got.description) == ({"epochs": 2}, {"method": "m"})
    assert torch.equal(got.content["values"], torch.full((10,), 7.0))
    assert got.content["plain"] == [1, "a", None]


def test_parts_are_small_and_listed(tmp_path: Path) -> None:
    path = save(tmp_path, 1, size=10_000_000)
    parts = sorted(path.glob("part-*"))
    assert len(parts) == 3
    assert max(part.stat().st_size for part in parts) == 15 * 2**20
    manifest = json.loads((path / "manifest.json").read_text())
    assert [part["name"] for part in manifest["parts"]] == [part.name for part in parts]
    assert load_checkpoint(tmp_path, "last").content["values"].shape == (10_000_000,)


def test_only_the_newest_of_each_kind_stays(tmp_path: Path) -> None:
    for step in (1, 2, 2, 3):
        save(tmp_path, step)
        save(tmp_path, step, "best")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best-00000003", "last-00000003"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    first = save(tmp_path, 4, size=1)
    second = save(tmp_path, 4, size=2)
    assert first != second
    assert len(load_checkpoint(tmp_path, "last").content["values"]) == 2
    assert not first.exists()


class KilledError(BaseException):
    pass


def kill_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Stop at the n-th thing done to the disk; gives the number of things done."""
    done = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            done[0] += 1
            if done[0] == call:
                raise KilledError
            return function(*args, **options)

        return replacement

    for owner, name in ((Path, "mkdir"), (Path, "open"), (Path, "rename"), (os, "fsync"), (os, "unlink")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    monkeypatch.setattr(os, "rmdir", counted(os.rmdir))
    return lambda: done[0]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "whole", 1)
    with pytest.MonkeyPatch.context() as patch:
        count = kill_at(-1, patch)
        save(tmp_path / "whole", 2)
    assert count() > 10
    steps = []
    for call in range(1, count() + 1):
        folder = tmp_path / str(call)
        save(folder, 1)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(call, patch)
            with pytest.raises(KilledError):
                save(folder, 2)
        steps.append(load_checkpoint(folder, "last").step)
        clean_leftovers(folder)
        save(folder, 3)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last-00000003"]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def cut_short(path: Path) -> None:
    part = path / "part-000.bin"
    part.write_bytes(part.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "part-000.bin").read_bytes())
    data[len(data) // 2] ^= 4
    (path / "part-000.bin").write_bytes(data)


def other_version(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "part-000.bin"),
        (flip_a_bit, "part-000.bin"),
        (other_version, "version 99"),
        (lambda path: (path / "part-000.bin").unlink(), "part-000.bin"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
        (lambda path: (path / "manifest.json").write_text('{"version": 1'), "damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "damaged"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "damaged"),
    ],
)
def test_damage_is_told_with_a_way_out(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(save(tmp_path, 5))
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(tmp_path, "last")
    assert "last-00000005" in str(caught.value)
    assert "fall back" not in str(caught.value)
    best = save(tmp_path, 4, "best")
    with pytest.raises(UserError, match=r"remove it to fall back to '.*best-00000004'"):
        load_checkpoint(tmp_path, "last")
    assert load_checkpoint(tmp_path, "best").folder == best


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harmed"),)

    facts = {"step": 1, "epoch": 1, "score": None, "config": {}, "description": {}}
    save_checkpoint(tmp_path, "last", facts, {"x": Harmful()})
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, "last")
    assert not (tmp_path / "harmed").exists()


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "last") is None
    with pytest.raises(UserError, match="no 'best' checkpoint"):
        load_checkpoint(tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="cannot write a checkpoint"):
        save(tmp_path, 1)


def test_leftovers_go_and_checkpoints_stay(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for name in (".new-last-00000002", ".old-last-00000000"):
        shutil.copytree(path, path.with_name(name))
    clean_leftovers(tmp_path)
    assert [p.name for p in path.parent.iterdir()] == ["last-00000001"]
