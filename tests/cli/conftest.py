"""Makes the helper modules of the rooms below importable; how a mistake ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

for _room in ("quantizers", "integer", "experiments"):
    _folder = str(Path(__file__).resolve().parents[1] / _room)
    if _folder not in sys.path:
        sys.path.append(_folder)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command with a mistake ends in, exit code 2 and nothing else printed."""
    from srquant.cli.app import main

    def call(*args: object) -> str:
        monkeypatch.setattr("sys.argv", ["srquant", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert (ended.value.code, told.out) == (2, "")
        assert re.fullmatch(r"error: [^\n]*\n", told.err), told.err
        return told.err

    return call
