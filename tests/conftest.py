from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["COLUMNS"] = "200"  # before anything is printed: tables do not wrap


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared beside the project: golden vectors, benchmark sets, weights."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project")
    return folder
