"""Small leaf modules that several networks share. `srquant.networks.tracing` keeps each of them whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SMALLEST_VARIANCE = 1e-16


class ChannelAffine(nn.Module):
    """y = x * scale + shift with one fixed pair per channel: mean shifts and output normalisation.

    The constants belong to the config of the network, so they are not part of the state dict.

    Args:
        scale: C factors.
        shift: C offsets.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        if len(scale) != len(shift):
            raise ValueError(f"{len(scale)} scales, but {len(shift)} shifts")
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        return x * self.scale[:, None, None] + self.shift[:, None, None]

    def extra_repr(self) -> str:
        """The channel count, for `print(network)`."""
        return f"channels={self.scale.numel()}"


class Anchor(nn.Module):
    """Repeat each channel `times` times in place: c0, c0, .., c1, c1, ..

    Before a `PixelShuffle(s)`, `Anchor(s * s)` is nearest-neighbour enlargement (ABPN, arXiv 2105.09120).
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C * times, H, W]."""
        return torch.repeat_interleave(x, self.times, dim=1)

    def extra_repr(self) -> str:
        """The count, for `print(network)`."""
        return f"times={self.times}"


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention of IMDN (arXiv 1909.11856, section 3.3), without the final product.

    The multiplication `x * attention` stands in the network, where a quantiser can see it. The standard
    deviation is that of the whole map (divided by H*W); variances below 1e-16 count as 1e-16, so that the
    gradient of a flat map is 0 and not NaN as in the original code.

    Args:
        channels: C.
        reduction: The bottleneck has C // reduction channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the attention [N, C, 1, 1] in 0..1."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
        return self.conv_du(variance.clamp_min(_SMALLEST_VARIANCE).sqrt() + mean)
