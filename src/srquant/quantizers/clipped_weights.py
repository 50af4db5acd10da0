"""Weights between symmetric bounds, on a grid whose two ends are levels.

With n = 2^bits - 1 and the clip u the levels are the odd multiples of u/n: {-u, -u/3, u/3, u} at 2 bit. All 2^bits
of them are used, and zero is none. ODM (ECCV 2024) quantises weights so:

    q = round((clip(w, -u, u) + u)/s)*s - u;  s = 2u/n
    d q/dw = 1[-u <= w <= u];  d q/du = 1[w > u] - 1[w < -u] + (q - clip(w, -u, u))/u

The `indicator` gradient of u leaves the last term out.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from srquant.errors import unknown
from srquant.quantizers import kernels
from srquant.quantizers.bounds import percentiles
from srquant.quantizers.kernels import SMALLEST_RANGE
from srquant.quantizers.straight_through import Gradient, pass_gradient
from srquant.quantizers.weights import LARGEST_INT8, WeightCodes, WeightQuantizer

ClipRule = Literal["magnitude", "signed", "max"]
Clipping = Literal["corrected", "rule", "learned"]

SPACING = 2
"""Between the multiples of two neighbouring levels."""


def clip_by_rule(weight: Tensor, rule: ClipRule, percentile: float = 99.0) -> Tensor:
    """The clip that a rule gives for a weight tensor, float32 [1], above 0 and detached.

    Args:
        weight: any shape.
        rule: `magnitude`: percentile M of |w|; `signed`: the farther from zero of the percentiles M and 100 - M of w;
            `max`: the largest |w|.
        percentile: M.

    Raises:
        UserError: an unknown rule.
    """
    if rule not in get_args(ClipRule):
        raise unknown("clip rule", rule, get_args(ClipRule))
    weight = weight.detach().float()
    if rule == "magnitude":
        found = _upper_percentile(weight.abs(), percentile)
    elif rule == "signed":
        found = torch.cat(percentiles(weight, percentile)).abs().amax()
    else:
        found = weight.abs().amax()
    return found.reshape(1).clamp(min=SMALLEST_RANGE)


def _upper_percentile(values: Tensor, percentile: float) -> Tensor:
    """Interpolated linearly; sorts nothing but, on other devices than the CPU, the upper tail."""
    flat = kernels.rows(kernels.dense(values), 1)[0]
    place = (100 - percentile) / 100 * (flat.numel() - 1)
    whole = int(place)
    if flat.device.type == "cpu":
        rank = flat.numel() - 1 - whole
        parted = np.partition(flat.numpy(), rank)
        ends = flat.new_tensor([parted[rank], parted[: max(rank, 1)].max()])
    else:
        ends = torch.topk(flat, min(whole + 2, flat.numel())).values[[whole, -1]]
    return torch.lerp(ends[0], ends[1], place - whole)


def odd_multiples(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """The nearest odd numbers within +-(2^bits - 1) to weight/step, float32 of the weight's shape.

    Args:
        weight: float32, any shape.
        step: float32 [1], above 0: clip/(2^bits - 1).
        bits: 1 to 7.
    """
    top = 2**bits - 1
    return (weight / step).add_(top).div_(SPACING).round_().clamp_(0, top).mul_(SPACING).sub_(top)


def round_between_clips(weight: Tensor, clip: Tensor, bits: int, *, gradient: Gradient = "official") -> Tensor:
    """Weights on the grid of the module; differentiable in both.

    Args:
        weight: float32, any shape.
        clip: float32 [1], above 0.
        bits: 1 to 7.
        gradient: of the clip, see the module.
    """
    return _RoundBetweenClips.apply(weight, clip, bits, gradient == "official")


class _RoundBetweenClips(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, clip: Tensor, bits: int, residual: bool) -> Tensor:
        step = clip / (2**bits - 1)
        rounded = odd_multiples(weight, step, bits).mul_(step)
        ctx.save_for_backward(weight, clip, rounded)
        ctx.residual = residual
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        weight, clip, rounded = ctx.saved_tensors
        inside = _within(grad, weight, clip)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None
        # a clipped weight is rounded to the clip itself, so that one product holds all signs
        slope = (grad * rounded).sum() - (inside * weight).sum() if ctx.residual else ((grad - inside) * rounded).sum()
        return inside, (slope / clip).reshape(1), None, None


def _within(grad: Tensor, weight: Tensor, clip: Tensor) -> Tensor:
    """The gradient where the weight is not clipped, zero elsewhere."""
    if weight.device.type != "cpu":  # reading the clip would make the processor wait
        return grad * (weight.abs() <= clip)
    end = torch.nextafter(clip, torch.full_like(clip, torch.inf)).item()
    return torch.ops.aten.hardtanh_backward(grad, weight, -end, end)


class ClippedWeights(WeightQuantizer):
    """Rounds weights between symmetric clips, one pair per tensor.

    Args:
        bits: 2 to 7.
        weight: [O,I,kH,kW], from which a learned clip starts.
        clipping: `corrected`: the clip is `gamma` times what the rule gives for the present weights, gamma trained
            from 1; `rule`: that with gamma 1; `learned`: the clip itself is trained from what the rule gives first.
        rule: see `clip_by_rule`.
        percentile: of the rule.
        gradient: of the clip.

    Attributes:
        gamma: float32 [1], trained; None unless `corrected`.
        trained_clip: float32 [1], trained; None unless `learned`.
    """

    def __init__(
        self,
        bits: int,
        weight: Tensor,
        *,
        clipping: Clipping = "corrected",
        rule: ClipRule = "magnitude",
        percentile: float = 99.0,
        gradient: Gradient = "official",
    ) -> None:
        super().__init__(bits)
        if clipping not in get_args(Clipping):
            raise unknown("clipping", clipping, get_args(Clipping))
        self.rule: ClipRule = rule
        self.percentile = percentile
        self.gradient: Gradient = gradient
        first = clip_by_rule(weight, rule, percentile)
        self.gamma = nn.Parameter(torch.ones_like(first)) if clipping == "corrected" else None
        self.trained_clip = nn.Parameter(first) if clipping == "learned" else None

    def clip(self, weight: Tensor) -> Tensor:
        """The present clip, float32 [1], at least 1e-6; differentiable in what is trained of it, not in the weight."""
        if self.trained_clip is not None:
            return _positive(self.trained_clip)
        clip = clip_by_rule(weight, self.rule, self.percentile)
        return clip if self.gamma is None else _positive(self.gamma * clip)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightQuantizer.forward`."""
        clip = self.clip(weight)
        rounded = round_between_clips(weight, clip, self.bits, gradient=self.gradient)
        return rounded, clip.detach() / (self._top * self._expansion)

    def codes(self, weight: Tensor) -> WeightCodes:
        """See `WeightQuantizer.codes`."""
        weight = weight.detach()
        step = self.clip(weight).detach() / self._top
        multiples = odd_multiples(weight, step, self.bits).to(torch.int8)
        count = len(weight)
        ones = torch.ones(count, dtype=torch.int32)
        return WeightCodes(multiples, ones, step.expand(count).clone(), self._expansion, SPACING)

    @property
    def _top(self) -> int:
        return 2**self.bits - 1

    @property
    def _expansion(self) -> int:
        return LARGEST_INT8 // self._top


def _positive(clip: Tensor) -> Tensor:
    """At least 1e-6, with the gradient it has there, so that a clip trained below comes back."""
    return pass_gradient(clip, clip.detach().clamp(min=SMALLEST_RANGE))
