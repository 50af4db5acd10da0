"""The dynamic gate controller of DDTB: two scales per picture for the bounds of one quantiser.

Paper: https://arxiv.org/abs/2203.03844, section "dynamic gate controller". Six stages: the channel means of the
tensor are rounded to 2 bit, a 1x1 convolution with ternary weights takes them to 32 features, these are
normalised, rectified and rounded to 2 bit again, and a second ternary 1x1 convolution gives two logits;
`2 * sigmoid(logit)` multiplies the upper and the lower bound.

Two kinds:

- `official`, as the released code: ranges of the two roundings over the whole batch, so that a picture's scale
  depends on its neighbours; both roundings cut the graph, so that only the last convolution learns; a constant
  tensor gives NaN; random first scales.
- `repaired`: ranges per picture and never narrower than an epsilon; the gradient passes both roundings, so that
  every parameter learns; features are normalised by the running statistics in training too, so that no picture
  depends on its neighbours and training computes what is used later; the last convolution starts at zero, so that
  all scales start at 1. The tensor itself gets no gradient through its gate, in both kinds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from srquant.methods.processes import joined
from srquant.quantizers.folding import batch_norm_affine
from srquant.quantizers.gating import GateWeights
from srquant.quantizers.grid import SMALLEST_RANGE
from srquant.quantizers.straight_through import fake_quantize_between
from srquant.quantizers.weights import SymmetricWeights

GateKind = Literal["official", "repaired"]

GATE_BITS = 2
GATE_FEATURES = 32

_LANES = 32


class Gate(nn.Sequential):
    """[N,C,H,W] -> the logits [N,2,1,1]; channel 0 is that of the upper bound, 1 that of the lower one.

    Args:
        channels: C.
        kind: see the module.
    """

    def __init__(self, channels: int, kind: GateKind) -> None:
        last = TernaryConv(GATE_FEATURES, 2)
        if kind == "official":
            first, norm = OrderedConv(channels, GATE_FEATURES), nn.BatchNorm2d(GATE_FEATURES)
            super().__init__(BatchRounding(), first, norm, nn.ReLU(), BatchRounding(), last)
            first.requires_grad_(False)
            norm.requires_grad_(False)
        else:
            first, norm = TernaryConv(channels, GATE_FEATURES), RunningNorm(GATE_FEATURES)
            super().__init__(PictureRounding(), first, norm, nn.ReLU(), PictureRounding(), last)
            nn.init.zeros_(last.weight)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Sequential
        """Run the gate, in float32 under autocast too."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(functional.adaptive_avg_pool2d(input.detach().float(), 1))

    def deployed(self) -> GateWeights:
        """The gate as plain numbers, with its running statistics."""
        first, norm, last = self[1], self[2], self[5]
        assert isinstance(first, TernaryConv)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(last, TernaryConv)
        scale, shift = batch_norm_affine(norm)
        parts = first.rounded().flatten(1), scale, shift, last.rounded().flatten(1)
        return GateWeights(*(part.detach().cpu().numpy() for part in parts))


def scales(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of the upper and the lower bound, [N,1,1,1] each, in 0..2."""
    upper, lower = (2 * torch.sigmoid(logits)).split(1, dim=1)
    return upper, lower


class TernaryConv(nn.Conv2d):
    """A 1x1 convolution without bias whose weights are rounded to -m, 0, m."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.rounding = SymmetricWeights(GATE_BITS)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d
        """[N,C,1,1] -> [N,O,1,1]."""
        return functional.conv2d(input, self.rounded())

    def rounded(self) -> Tensor:
        """The ternary weights [O,C,1,1]."""
        return self.rounding(self.weight)[0]


class OrderedConv(TernaryConv):
    """A TernaryConv that learns nothing and adds in a fixed order, the same on every machine.

    Normalised over a small batch, its results come out at exactly half the largest one, where the last digit
    decides how the second rounding goes. The order is that of the machine on which the released code was recorded:
    after the first product, 32 running sums with fused multiplication, added by halves.
    """

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d
        """[N,C,1,1] -> [N,O,1,1]."""
        weight = self.rounded().flatten(1).double()
        products = input.flatten(1).double().unsqueeze(1) * weight  # exact
        first, others = products[..., :1].float(), products[..., 1:]
        sums = functional.pad(first, (0, _LANES - 1))
        for part in functional.pad(others, (0, -others.shape[-1] % _LANES)).split(_LANES, -1):
            sums = (sums.double() + part).float()
        while sums.shape[-1] > 1:
            lower, upper = sums.chunk(2, -1)
            sums = lower + upper
        return sums.unsqueeze(-1)


class BatchRounding(nn.Module):
    """Rounds to 2 bit between the ends of the whole batch; no gradient."""

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape to the same shape; NaN where all are equal."""
        lower, upper = values.aminmax()
        return round_to_range(values, lower.reshape(1), upper.reshape(1))


class PictureRounding(nn.Module):
    """Rounds to 2 bit between the ends of each sample; straight-through."""

    def forward(self, values: Tensor) -> Tensor:
        """Values [N,C,1,1] to the same shape."""
        seen = values.detach()
        lower, upper = seen.amin(1, keepdim=True), seen.amax(1, keepdim=True)
        rounded = round_to_range(seen, lower, torch.maximum(upper, lower + SMALLEST_RANGE * (1 + lower.abs())))
        return values + (rounded - seen)


def round_to_range(values: Tensor, lower: Tensor, upper: Tensor, bits: int = GATE_BITS) -> Tensor:
    """The official grid between two ends that broadcast to `values`."""
    return fake_quantize_between(values, lower, upper, bits, grid="official")


class RunningNorm(nn.BatchNorm2d):
    """Batch normalisation by the running statistics, in training too, which updates them afterwards.

    The squared distance from the running mean updates the variance, so that a batch of one picture does no harm.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.BatchNorm2d
        """[N,C,1,1] to the same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        mean = self.running_mean.clone().view(1, -1, 1, 1)
        deviation = torch.sqrt(self.running_var + self.eps).view(1, -1, 1, 1)
        out = (input - mean) / deviation * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        if self.training:
            self._update(joined(input.detach()), mean)
        return out

    @torch.no_grad()
    def _update(self, values: Tensor, mean: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(values.mean((0, 2, 3)), self.momentum)
        self.running_var.lerp_((values - mean).square().mean((0, 2, 3)), self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
