"""DAQ: channel-wise distribution-aware quantization for deep image super-resolution networks (Hong et al., WACV 2022).

Paper: https://arxiv.org/abs/2012.11230. Code: https://github.com/Cheeun/DAQ-pytorch, read at commit 28c56e4.

Nothing but the weights is learned. Every channel of every picture has its own grid, from its mean mu and its
deviation sigma, with a step t(b) * sigma, t from a table of steps for a Gaussian:

    y = (round((x - mu)/step + 1/2) - 1/2) * step, clipped to +-(2^(b-1) - 1/2) * step;  out = y + mu

Where the tensor's minimum is exactly 0 (after a ReLU), sigma is that of the positive entries and
`out = round(x/step) * step`, unclipped. Sigma itself may be rounded (`sigma_bits`) by the first formula over the
channels of a picture. Weights: the first formula over the whole tensor with mu = 0. All gradients are 1.

Deviations: none in the quantisers; SRResNet keeps its PReLU, where DAQ's own has ReLU. The code indexes its table
by b - 1, so that 2 bit uses the optimal step of 1 bit; that is kept, as is the missing clip after a ReLU (more
than 2^b levels are possible). Such grids exist for one picture only: they are simulated, not deployed.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from srquant.errors import UserError
from srquant.methods.base import MethodConfig, QuantizedObjective
from srquant.networks.info import SRNetwork
from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.straight_through import pass_gradient
from srquant.quantizers.weights import WeightCodes, WeightQuantizer

STEPS = {2: 1.596, 3: 0.996, 4: 0.586, 5: 0.335, 6: 0.188, 7: 0.104, 8: 0.057}
"""Step for a deviation of 1, by bits, as the code looks it up: each is the optimal step of one bit less."""

_FIXED_STEP, _FIXED_SIGMA_STEP = STEPS[2], STEPS[8]


class DAQConfig(MethodConfig):
    """Options of DAQ."""

    sigma_bits: int | None = Field(default=4, ge=2, le=8, description="bits of the deviations; none: not rounded")
    fixed_steps: bool = Field(
        default=False, description="the code's --finetune: always the steps of 2 bit, and of 8 bit for the deviations"
    )


def mid_rise(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """Round to odd multiples of half a step, 2^bits of them; 0 where the step is 0. Shapes broadcast."""
    end = (2 ** (bits - 1) - 0.5) * step
    rounded = (torch.round(values / step + 0.5) - 0.5) * step
    return torch.where(step > 0, torch.minimum(torch.maximum(rounded, -end), end), torch.zeros_like(rounded))


class ChannelQuantizer(ActivationQuantizer):
    """Rounds every channel of every picture to its own grid; nothing is trained.

    Args:
        bits: 2 to 8.
        sigma_bits: of the deviations; None leaves them as they are.
        fixed_steps: see `DAQConfig`.
    """

    def __init__(self, bits: int, *, sigma_bits: int | None = None, fixed_steps: bool = False) -> None:
        super().__init__(bits)
        self.sigma_bits = sigma_bits
        self.fixed_steps = fixed_steps

    def forward(self, values: Tensor) -> Tensor:
        """Float32 [N,C,H,W] to the same shape; the gradient passes unchanged."""
        seen = values.detach().float()
        rounded = self._rectified(seen) if bool(seen.amin() == 0) else self._centred(seen)
        return pass_gradient(values, rounded.to(values.dtype))

    def _centred(self, values: Tensor) -> Tensor:
        mean, sigma = values.mean((2, 3), keepdim=True), values.std((2, 3), keepdim=True)
        return mid_rise(values - mean, self._step(sigma), self.bits) + mean

    def _rectified(self, values: Tensor) -> Tensor:
        count = (values > 0).sum((2, 3), keepdim=True) + 1
        mean = values.sum((2, 3), keepdim=True) / count
        variance = values.square().sum((2, 3), keepdim=True) / count - mean.square()
        step = self._step(variance.clamp(min=0).sqrt())
        return torch.where(step > 0, torch.round(values / step) * step, torch.zeros_like(values))

    def _step(self, sigma: Tensor) -> Tensor:
        """Deviations [N,C,1,1] -> steps, after rounding the deviations of a picture over its channels."""
        if self.sigma_bits is not None:
            mean = sigma.mean(1, keepdim=True)
            step = sigma.std(1, keepdim=True) * (_FIXED_SIGMA_STEP if self.fixed_steps else STEPS[self.sigma_bits])
            sigma = mid_rise(sigma - mean, step, self.sigma_bits) + mean
        return sigma * (_FIXED_STEP if self.fixed_steps else STEPS[self.bits])

    def deployed_grid(self) -> Grid:
        """There is none.

        Raises:
            UserError: always.
        """
        raise UserError("DAQ computes its grids per picture; it can only be simulated, not deployed")


class GaussianWeights(WeightQuantizer):
    """The first formula of this module over the whole tensor, with mean 0; the gradient passes unchanged."""

    def __init__(self, bits: int, *, fixed_steps: bool = False) -> None:
        super().__init__(bits)
        self.factor = _FIXED_STEP if fixed_steps else STEPS[bits]

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightQuantizer.forward`."""
        seen = weight.detach()
        step = seen.std().reshape(1) * self.factor
        return weight + (mid_rise(seen, step, self.bits) - seen), step

    def codes(self, weight: Tensor) -> WeightCodes:  # noqa: ARG002 - there are none
        """There are none: the activations they would be multiplied with have no grid.

        Raises:
            UserError: always.
        """
        raise UserError("DAQ computes its grids per picture; it can only be simulated, not deployed")


class DAQ(QuantizedObjective):
    """The objective of DAQ."""

    name = "daq"
    config_type = DAQConfig
    config: DAQConfig

    def __init__(
        self, network: QuantizedNetwork, teacher: SRNetwork | None, config: DAQConfig, learning_rate: float
    ) -> None:
        super().__init__(network, teacher, config, learning_rate)
        for convolution in network.convolutions().values():
            convolution.snap_bias = False  # there is no grid to round it to

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """A grid per channel and picture."""
        config = self.config
        return ChannelQuantizer(old.bits, sigma_bits=config.sigma_bits, fixed_steps=config.fixed_steps)

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """One step per tensor."""
        return GaussianWeights(convolution.bits, fixed_steps=self.config.fixed_steps)
