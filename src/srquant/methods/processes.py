"""Statistics over the joined batch of all training processes, so that each process sets the same bounds."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


@torch.no_grad()
def joined(values: Tensor) -> Tensor:
    """The tensors that all processes hold, concatenated along the first dimension; all have the same shape.

    With one process it is `values` itself.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return values
    own = values.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    return torch.cat(parts)
