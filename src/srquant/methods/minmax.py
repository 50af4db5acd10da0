"""Min-max quantisation-aware training (Jacob et al., CVPR 2018). A plain baseline.

Paper: https://arxiv.org/abs/1712.05877. Nothing but the weights is learned. The range of an activation follows the
ends of the training batches as a moving average; it is rounded on the integer grid of that range, gradient 1
inside and 0 outside. Weights are symmetric below their largest magnitude, per output channel or per tensor,
gradient 1.

Deviations: the range is used from the first batch on (the paper may wait); weights are symmetric, as integer
engines want them.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from srquant.methods.base import MethodConfig, QuantizedObjective
from srquant.methods.processes import joined
from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.straight_through import fake_quantize_between, integer_grid
from srquant.quantizers.weights import SymmetricWeights, WeightQuantizer


class MinMaxConfig(MethodConfig):
    """Options of min-max training."""

    momentum: float = Field(default=0.01, gt=0, le=1, description="share of a new batch in the moving range")
    per_channel: bool = Field(default=True, description="a weight range per output channel, not per tensor")


class MovingRangeQuantizer(ActivationQuantizer):
    """Rounds to the integer grid of a range that follows the training batches.

    Attributes:
        lower: float32 [1].
        upper: float32 [1].
        initialised: bool [], whether a training batch was seen.
    """

    lower: Tensor
    upper: Tensor
    initialised: Tensor

    def __init__(self, bits: int, *, momentum: float) -> None:
        super().__init__(bits)
        self.momentum = momentum
        self.register_buffer("lower", torch.tensor([-1.0]))
        self.register_buffer("upper", torch.tensor([1.0]))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, values: Tensor) -> Tensor:
        """Float32 values of any shape, rounded; a training batch moves the range first."""
        if self.training:
            self._follow(values.detach())
        # copies, because the next batch moves the buffers that the backward pass may still need
        return fake_quantize_between(
            values, self.lower.clone(), self.upper.clone(), self.bits, grid="integer", gradient="indicator"
        )

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        lower, upper = joined(torch.stack(values.aminmax()).float().unsqueeze(0)).unbind(1)
        share = torch.where(self.initialised, self.momentum, 1.0)
        self.lower.lerp_(lower.amin().reshape(1), share)
        self.upper.lerp_(upper.amax().reshape(1), share)
        self.initialised.fill_(True)

    def step(self) -> Tensor:
        """The scale of the deployed grid, float32 [1]."""
        return integer_grid(self.lower, self.upper, self.bits)[0]

    def deployed_grid(self) -> Grid:
        """The integer grid of the range."""
        scale, zero_point = integer_grid(self.lower, self.upper, self.bits)
        return Grid(float(scale), int(zero_point), 2**self.bits - 1)


class MinMax(QuantizedObjective):
    """The objective of min-max training."""

    name = "minmax"
    config_type = MinMaxConfig
    config: MinMaxConfig

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """A moving range."""
        return MovingRangeQuantizer(old.bits, momentum=self.config.momentum)

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """Symmetric."""
        return SymmetricWeights(convolution.bits, per_channel=self.config.per_channel)

    def rest_quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """A moving range as well."""
        return self.quantizer(old)
