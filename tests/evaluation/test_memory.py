from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from srquant.evaluation import memory
from srquant.evaluation.memory import peak_memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak anew")
def test_the_peak_is_what_the_block_held_at_most() -> None:
    with peak_memory(cuda=False) as first:
        np.ones(25_000_000)  # 200 MB, gone at once
    with peak_memory(cuda=False) as second:
        held = [np.ones(5_000_000) for _ in range(2)]
    assert len(held) == 2
    assert first.megabytes == pytest.approx(200, abs=30)
    assert second.megabytes == pytest.approx(80, abs=30)


def test_nothing_is_told_where_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "missing")
    with peak_memory(cuda=False) as peak:
        pass
    assert peak.megabytes is None
