"""Two processes set the bounds that one process sets from the joined batch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from srquant.methods.ddtb import GatedBoundsQuantizer
from srquant.methods.minmax import MovingRangeQuantizer
from srquant.methods.pams import MaxScaleQuantizer


def values() -> Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))


def ranges(batch: Tensor) -> dict[str, Tensor]:
    ddtb = GatedBoundsQuantizer(2, 3, gate=None)
    ddtb(batch)
    ddtb.spread.see(batch)
    moving = MovingRangeQuantizer(4, momentum=0.5)
    moving(batch)
    largest = MaxScaleQuantizer(4)
    largest(batch)
    return {
        **ddtb.spread.state_dict(),
        "moved": torch.cat([moving.lower, moving.upper]),
        "bounds": torch.cat([ddtb.lower, ddtb.upper]).detach(),
        "largest": largest.alpha.detach(),
    }


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(ranges(values().chunk(2)[rank]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_agree(tmp_path: Path):
    spawn(_run, (str(tmp_path),), nprocs=2)
    expected = ranges(values())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=f"{rank}: {name}")
