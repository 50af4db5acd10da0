"""Small leaf modules that several networks share. `srquant.networks.tracing` keeps each of them whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST_VARIANCE = 1e-16
_SOFT_POOL = 7
_ESA_SMALLEST = 15
"""Less leaves no window of 7 behind a convolution of stride 2."""


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


class CentredSigmoid(nn.Module):
    """sigmoid(x) - 1/2, the symmetric attention of SPAN (arXiv 2311.12770, section 3.2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        return torch.sigmoid(x) - 0.5


class FloatLayer(nn.Module):
    """Base of leaves that look at pooled features: computed in float32 between two grids.

    `forward` takes one tensor and consists of what `srquant.integer.program_lowering` knows; nothing else has to be
    told of a new one. Such a layer looks far, so its network cannot be tiled.

    Attributes:
        attention: the result lies in 0..1.
        reader: name of the convolution inside that undoes any scaling of the input's channels; empty where none can.
        channels: of the result.
    """

    attention: ClassVar[bool] = False
    reader: ClassVar[str] = ""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


class ContrastAttention(FloatLayer):
    """Contrast-aware channel attention of IMDN (arXiv 1909.11856, section 3.3), without the final product.

    The multiplication `x * attention` stands in the network, where a quantiser can see it. The standard
    deviation is that of the whole map (divided by H*W); variances below 1e-16 count as 1e-16, so that the
    gradient of a flat map is 0 and not NaN as in the original code.

    Args:
        channels: C.
        reduction: The bottleneck has C // reduction channels.
    """

    attention = True
    reader = "conv_du.0"

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__(channels)
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


class SpatialAttention(FloatLayer):
    """Enhanced spatial attention, ESA, as RFDN and RLFN use it (arXiv 2009.11551, section 3.2).

    As a leaf it is the pooled middle: squeezed features in, a coarse map of their size out. `attend` is the whole
    attention, whose layers at full resolution stand in the network, where quantisers can see them.

    Args:
        features: C.
        squeezed: channels in the middle, R.
        deep: RFDN's three convolutions behind the pooling with ReLU between them; RLFN kept one.
    """

    reader = "conv2"

    def __init__(self, features: int, squeezed: int, *, deep: bool) -> None:
        super().__init__(squeezed)
        self.conv1 = nn.Conv2d(features, squeezed, 1)
        self.conv_f = nn.Conv2d(squeezed, squeezed, 1)
        self.grow = Grow(_ESA_SMALLEST)
        self.conv2 = nn.Conv2d(squeezed, squeezed, 3, stride=2)
        self.pool = nn.MaxPool2d(7, 3)
        if deep:
            self.conv_max = nn.Conv2d(squeezed, squeezed, 3, padding=1)
            self.relu_max = nn.ReLU()
        self.conv3 = nn.Conv2d(squeezed, squeezed, 3, padding=1)
        if deep:
            self.relu3 = nn.ReLU()
            self.conv3_ = nn.Conv2d(squeezed, squeezed, 3, padding=1)
        self.conv4 = nn.Conv2d(squeezed, features, 1)
        self.resize = ResizeLike()
        self.sigmoid = nn.Sigmoid()
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        """Map squeezed features [N, R, H, W] to a coarse map of the same shape."""
        pooled = self.pool(self.conv2(self.grow(x)))
        if self.deep:
            pooled = self.conv3_(self.relu3(self.conv3(self.relu_max(self.conv_max(pooled)))))
        else:
            pooled = self.conv3(pooled)
        return self.resize(pooled, x)

    def attend(self, x: Tensor) -> Tensor:
        """Features [N, C, H, W] times their attention."""
        squeezed = self.conv1(x)
        return x * self.sigmoid(self.conv4(self(squeezed) + self.conv_f(squeezed)))


class LocalImportance(FloatLayer):
    """The importance map of PlainUSR's local attention (ACCV 2024), behind its first 1x1 convolution.

    Its layers are numbered as in the original sequence; `0`, the convolution at full resolution, is called by the
    network, where a quantiser can see it.

    Args:
        features: C.
        squeezed: channels of the sampled map, R.
    """

    attention = True

    def __init__(self, features: int, squeezed: int) -> None:
        super().__init__(features)
        self.add_module("0", nn.Conv2d(features, squeezed, 1))
        self.grow = Grow(_SOFT_POOL)
        self.add_module("1", SoftPool(_SOFT_POOL, 3))
        self.add_module("2", nn.Conv2d(squeezed, squeezed, 3, stride=2, padding=1))
        self.add_module("3", nn.Conv2d(squeezed, features, 3, padding=1))
        self.sigmoid = nn.Sigmoid()
        self.resize = ResizeLike()

    def forward(self, x: Tensor) -> Tensor:
        """Map squeezed features [N, R, H, W] to the importance [N, C, H, W] in 0..1."""
        sampled = self.get_submodule("1")(self.grow(x))
        coarse = self.get_submodule("3")(self.get_submodule("2")(sampled))
        return self.resize(self.sigmoid(coarse), x)


class SoftPool(nn.Module):
    """Mean of each window with the softmax of its own values as weights (arXiv 2101.00440), no padding.

    Args:
        size: side of a window.
        stride: step from window to window.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.average = nn.AvgPool2d(size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, (H - size) // stride + 1, (W - size) // stride + 1]."""
        weight = torch.exp(x)
        return self.average(weight * x) / self.average(weight)


class ResizeLike(nn.Module):
    """Bilinear enlargement, corners not aligned, to the height and width of another tensor."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Map [N, C, h, w] and [N, D, H, W] to [N, C, H, W]."""
        return functional.interpolate(x, (like.shape[2], like.shape[3]), mode="bilinear", align_corners=False)


class Grow(nn.Module):
    """Repeat the last row and column until there are `size` of each, so that the pooling behind has a window.

    Larger maps pass unchanged. The original networks refuse pictures that need it.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, max(H, size), max(W, size)]."""
        bottom, right = (cast("int", torch.sym_max(self.size - length, 0)) for length in x.shape[2:])
        return functional.pad(x, [0, right, 0, bottom], mode="replicate")

    def extra_repr(self) -> str:
        """The size, for `print(network)`."""
        return f"size={self.size}"
