from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_training import TrainingFolders, folders_in


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are slower with more, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path: Path) -> TrainingFolders:
    """Small pictures to train and validate on, a cache and a place for runs, all fresh."""
    return folders_in(tmp_path)
