"""LSQ: learned step size quantization (Esser et al., ICLR 2020). A plain baseline.

Paper: https://arxiv.org/abs/1902.08153. With Qn and Qp the ends of the codes and s the trained step:

    out = round(clip(x/s, -Qn, Qp)) * s
    d out/dx = 1[-Qn <= x/s <= Qp];  d out/ds = round(x/s) - x/s inside, -Qn or Qp outside
    gradient of s times 1/sqrt(N*Qp);  s starts at 2*mean|x|/sqrt(Qp)

N is the number of weights, or of the features of one sample. A tensor whose first training batch has no negative
value (after a ReLU) gets the codes 0..2^b - 1, any other -2^(b-1)..2^(b-1) - 1, as weights do.

Deviations: the start of an activation's step is that of the first training batch, as in the paper, but codes are
signed by what that batch holds and not by the layer in front; Adam in place of SGD, under which the gradient's
factor matters less; the steps of activations have the learning rate of bounds, those of weights that of weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from srquant.methods.base import MethodConfig, QuantizedObjective
from srquant.methods.processes import joined
from srquant.quantizers.grid import Grid
from srquant.quantizers.kernels import SMALLEST_RANGE
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.weights import LARGEST_INT8, WeightCodes, WeightQuantizer


class LSQConfig(MethodConfig):
    """Options of LSQ."""

    bounds_learning_rate: float = Field(
        default=1e-3, gt=0, allow_inf_nan=False, description="of the steps of activations, at the start"
    )


def round_to_steps(values: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    """Round to whole multiples of a step between two of them; differentiable in the first two.

    Args:
        values: any shape; rounded in float32.
        step: float32 [1], above 0.
        lowest: smallest multiple.
        highest: largest multiple.
    """
    return _RoundToSteps.apply(values.float(), step, lowest, highest)


class _RoundToSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(values, step)
        ctx.ends = lowest, highest
        return torch.round((values / step).clamp_(lowest, highest)) * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, step = ctx.saved_tensors
        lowest, highest = ctx.ends
        (grad,) = grads
        multiples = values / step
        clamped = multiples.clamp(lowest, highest)
        inside = (clamped == multiples).float()
        by_step = torch.round(clamped) - clamped * inside
        return grad * inside, (grad * by_step).sum_to_size(step.shape), None, None


def scaled_gradient(step: Tensor, factor: float) -> Tensor:
    """The step itself, above 0, whose gradient is multiplied by `factor`."""
    positive = step.abs().clamp(min=SMALLEST_RANGE)
    return positive.detach() + (positive - positive.detach()) * factor


class StepQuantizer(ActivationQuantizer):
    """Rounds to multiples of a trained step.

    Attributes:
        size: float32 [1], the step, trained.
        zero_point: int64 [], 0 or 2^(bits-1), from the first training batch.
        initialised: bool [], whether it was seen.
    """

    zero_point: Tensor
    initialised: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.size = nn.Parameter(torch.ones(1))
        self.register_buffer("zero_point", torch.tensor(2 ** (bits - 1)))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, values: Tensor) -> Tensor:
        """Float32 [N,C,H,W] to the same shape."""
        if self.training and not self.initialised:
            self._set_from(joined(values.detach()).float())
        lowest, highest = self._ends()
        factor = 1 / math.sqrt(values[0].numel() * highest)
        return round_to_steps(values, scaled_gradient(self.size, factor), lowest, highest)

    @torch.no_grad()
    def _set_from(self, values: Tensor) -> None:
        if bool((values >= 0).all()):
            self.zero_point.zero_()
        start = 2 * values.abs().mean() / math.sqrt(self._ends()[1])
        self.size.copy_(start.clamp(min=SMALLEST_RANGE))
        self.initialised.fill_(True)

    def _ends(self) -> tuple[int, int]:
        zero_point = int(self.zero_point)
        return -zero_point, 2**self.bits - 1 - zero_point

    def step(self) -> Tensor:
        """The scale of the deployed grid, float32 [1]."""
        return scaled_gradient(self.size.detach(), 1.0)

    def deployed_grid(self) -> Grid:
        """The trained step and the chosen zero point."""
        return Grid(float(self.step()), int(self.zero_point), 2**self.bits - 1)


class StepWeights(WeightQuantizer):
    """Rounds weights to multiples of a trained step, one per tensor."""

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__(bits)
        self.highest = 2 ** (bits - 1) - 1
        self.lowest = max(-self.highest - 1, -LARGEST_INT8)  # its negative has to be an int8 too
        start = 2 * weight.detach().abs().mean() / math.sqrt(self.highest)
        self.size = nn.Parameter(start.clamp(min=SMALLEST_RANGE).reshape(1))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightQuantizer.forward`."""
        step = scaled_gradient(self.size, 1 / math.sqrt(weight.numel() * self.highest))
        return round_to_steps(weight, step, self.lowest, self.highest), step.detach() / self._expansion

    def codes(self, weight: Tensor) -> WeightCodes:
        """See `WeightQuantizer.codes`."""
        step = scaled_gradient(self.size.detach(), 1.0)
        multiples = torch.round((weight.detach() / step).clamp(self.lowest, self.highest)).to(torch.int8)
        count = len(weight)
        zero = torch.zeros(count, dtype=torch.int32)
        return WeightCodes(multiples, zero, step.expand(count).clone(), self._expansion)

    @property
    def _expansion(self) -> int:
        return LARGEST_INT8 // -self.lowest


class LSQ(QuantizedObjective):
    """The objective of LSQ."""

    name = "lsq"
    config_type = LSQConfig

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """A trained step."""
        return StepQuantizer(old.bits)

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """A trained step per tensor."""
        return StepWeights(convolution.bits, convolution.weight)
