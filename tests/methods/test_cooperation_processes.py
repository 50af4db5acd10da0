"""Two processes regularise as one process does the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from srquant.methods.cooperation import Pull
from srquant.methods.regularising import Watch
from srquant.quantizers import compiled
from srquant.quantizers.bounds import BoundsQuantizer


def batch() -> Tensor:
    return 3 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))


def regularised(values: Tensor) -> dict[str, Tensor]:
    """Terms, and gradients of the values: of the term alone, and pulled into that of a mean over the batch."""
    found: dict[str, Tensor] = {}
    compiled._compiled = lambda kernel, _device: kernel  # pyright: ignore  # compiling takes longer than all of this
    for kernel in ("eager", "compiled"):
        for kind in ("mismatch", "variance"):
            for pull in (None, Pull("cosine", "tensor", torch.tensor(0.01))):
                leaf = values.clone().requires_grad_()
                quantizer = BoundsQuantizer(2, percentile=None, start=2.0)
                name: Any = kind
                quantizer.kernel = kernel
                watch = quantizer.watch = Watch(name, True, pull)
                out = quantizer(leaf)
                loss = watch.terms[0] if pull is None else (out.square() + leaf.sin()).sum((1, 2, 3)).mean()
                loss.backward()
                assert leaf.grad is not None
                key = f"{kernel} {kind} {'alone' if pull is None else 'pulled'}"
                found |= {f"{key} term": watch.terms[0].detach(), key: leaf.grad}
    return found


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(regularised(batch().chunk(2)[rank]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_compiled", compiled._compiled)  # put back afterwards
    spawn(_run, (str(tmp_path),), nprocs=2)
    expected = regularised(batch())
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in expected.items():
        if name.endswith("term"):
            # the loop averages what the processes tell
            torch.testing.assert_close((found[0][name] + found[1][name]) / 2, value, msg=name)
        else:
            # and their gradients: each sample counts for half of what it does in a process of its own
            torch.testing.assert_close(torch.cat([part[name] for part in found]) / 2, value, msg=name)
