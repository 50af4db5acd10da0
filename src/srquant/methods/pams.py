"""PAMS: quantized super-resolution via parameterized max scale (Li et al., ECCV 2020).

Paper: https://arxiv.org/abs/2011.04212. Code: https://github.com/colorjam/PAMS, read at commit 737cc09.

Activations (b bits, q = 2^(b-1) - 1) are rounded symmetrically below a trained maximum alpha, 2^b - 1 levels:

    out = round(clip(x, -alpha, alpha) * q/alpha) * alpha/q
    d out/dx = 1[|x| < alpha];  d out/dalpha = sign(x) 1[|x| > alpha] + (out - clip(x))/alpha

In the first epoch alpha is overwritten in every training batch by the mean over the samples of max|x|, and x is
not clipped; then it learns. Weights: `round(w*q/m)*m/q`, m = max|w| of the tensor. Loss: L1 + skt_weight * SKT.

Deviations: the student starts from the float
network (the released main.py starts it from random weights). The code's moving average, which never acts with its
settings, is left out. An alpha that is trained below 0 counts as 1e-6, with the gradient it has there; in the code it
turns the clip round.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from srquant.methods.base import MethodConfig, QuantizedObjective
from srquant.methods.flags import Flags
from srquant.methods.processes import joined
from srquant.quantizers.grid import Grid
from srquant.quantizers.kernels import SMALLEST_RANGE
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.straight_through import pass_gradient, round_straight_through
from srquant.quantizers.weights import SymmetricWeights, WeightQuantizer


class PAMSConfig(MethodConfig):
    """Options of PAMS; the defaults are those of its code."""

    skt_weight: float = Field(
        default=1000.0, ge=0, allow_inf_nan=False, description="of the knowledge transfer (SKT) loss; needs a teacher"
    )


class MaxScaleQuantizer(ActivationQuantizer):
    """Rounds symmetrically below a trained maximum.

    Attributes:
        alpha: float32 [1], trained.
        flags: "measures": training batches overwrite alpha and are not clipped.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.alpha = nn.Parameter(torch.tensor([10.0]))
        self.flags = Flags(measures=True)
        self.top = 2 ** (bits - 1) - 1

    def forward(self, values: Tensor) -> Tensor:
        """Float32 [N,C,H,W] to the same shape."""
        measures = self.training and self.flags["measures"]
        if measures:
            largest = joined(values.detach().float().abs().flatten(1).amax(1)).mean()
            with torch.no_grad():
                self.alpha.copy_(largest.clamp(min=SMALLEST_RANGE))
        alpha, clipped = pass_gradient(self.alpha, self._positive()), values.float()
        if not measures:
            clipped = torch.max(torch.min(clipped, alpha), -alpha)
        return round_straight_through(clipped * self.top / alpha) * alpha / self.top

    def step(self) -> Tensor:
        """The scale of the deployed grid, float32 [1]."""
        return self._positive() / self.top

    def _positive(self) -> Tensor:
        return self.alpha.detach().clamp(min=SMALLEST_RANGE)

    def deployed_grid(self) -> Grid:
        """Codes 0..2q around the zero point q."""
        return Grid(float(self.step()), self.top, 2 * self.top)


class PAMS(QuantizedObjective):
    """The objective of PAMS."""

    name = "pams"
    config_type = PAMSConfig

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """A trained maximum."""
        return MaxScaleQuantizer(old.bits)

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """Symmetric, one maximum per tensor."""
        return SymmetricWeights(convolution.bits)

    def start_epoch(self, epoch: int) -> None:
        """Measure in the first epoch, learn from the second on."""
        super().start_epoch(epoch)
        for quantizer in self.network.activation_quantizers().values():
            if isinstance(quantizer, MaxScaleQuantizer):
                quantizer.flags["measures"] = epoch == 1
