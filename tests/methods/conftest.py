from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_quantizers = str(Path(__file__).resolve().parents[1] / "quantizers")
if _quantizers not in sys.path:
    sys.path.append(_quantizers)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The recorded vectors hold exact ties, which the last digit decides: add in the order they were recorded in."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
