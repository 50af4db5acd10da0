"""Means and deviations of a tensor's channels over many batches, and how far they differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srquant.methods.processes import joined
from srquant.quantizers.kernels import SMALLEST_RANGE


class ChannelStatistics(nn.Module):
    """Mean and deviation of every channel of a tensor, in one pass over batches of all processes.

    Attributes:
        count: float64 [], values of a channel that were seen.
        mean: float64 [C].
        squares: float64 [C], sums of squared distances from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(channels, dtype=torch.float64))

    @torch.no_grad()
    def see(self, values: Tensor) -> None:
        """Note a batch [N,C,H,W]."""
        parts = torch.stack(torch.var_mean(values.float(), (0, 2, 3), correction=0)).unsqueeze(0)
        seen = values.numel() / values.shape[1]
        for variance, mean in joined(parts).double():
            before, total = mean - self.mean, self.count + seen
            self.squares += variance * seen + before.square() * (self.count * seen / total)
            self.mean += before * (seen / total)
            self.count.copy_(total)

    def deviation(self) -> Tensor:
        """The (population) standard deviation of every channel, float64 [C]."""
        return (self.squares / self.count.clamp(min=1)).sqrt()

    def mismatch_of_means(self) -> float:
        """m_mean of `srquant.methods.offsets`."""
        return self._spread(self.mean)

    def mismatch_of_deviations(self) -> float:
        """m_dev of `srquant.methods.offsets`."""
        return self._spread(self.deviation())

    def _spread(self, values: Tensor) -> float:
        return float(values.std(correction=0) / self.deviation().mean().clamp(min=SMALLEST_RANGE))
