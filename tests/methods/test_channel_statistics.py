"""Means and deviations of channels over batches and processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from srquant.methods.channel_statistics import ChannelStatistics


def features(seed: int = 0) -> Tensor:
    spread = torch.tensor([1.0, 3.0, 0.2]).view(1, -1, 1, 1)
    return torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * spread + 7 * spread


def test_statistics_are_those_of_all_batches_together():
    statistics, batches = ChannelStatistics(3), [features(seed) for seed in range(3)]
    for values in batches:
        statistics.see(values)
    whole = torch.cat(batches).double()
    mean, deviation = whole.mean((0, 2, 3)), whole.std((0, 2, 3), correction=0)
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.deviation(), deviation, rtol=1e-6, atol=0)
    spread = float(deviation.mean())
    assert statistics.mismatch_of_means() == pytest.approx(float(np.std(mean.numpy())) / spread)
    assert statistics.mismatch_of_deviations() == pytest.approx(float(np.std(deviation.numpy())) / spread)


def _see(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    statistics = ChannelStatistics(3)
    for seed in range(2):
        statistics.see(features(seed).chunk(2)[rank])
    torch.save(statistics.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_gather_the_same_statistics(tmp_path: Path):
    spawn(_see, (str(tmp_path),), nprocs=2)
    expected = ChannelStatistics(3)
    for seed in range(2):
        expected.see(features(seed))
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-6, atol=1e-9, msg=f"{rank}: {name}")
