"""DDTB: dynamic dual trainable bounds for ultra-low precision super-resolution networks (Zhong et al., ECCV 2022).

Paper: https://arxiv.org/abs/2203.03844. Code: https://github.com/zysxmu/DDTB, read at commit e21403d.

Activations (b bits, n = 2^b - 1) are rounded between a trained upper bound u and lower bound l, per tensor:

    xc = clip(x, l, u);  s = n/(u - l);  zp = round(s*l) + 2^(b-1);  out = (round(s*xc - zp) + zp)/s
    d out/dx = 1[l < x < u];  d out/du = 1[x > u] + r;  d out/dl = 1[x < l] - r;  r = (out - xc)/(u - l)

The bounds start at the percentiles M and 100 - M of the first training batch. Weights are rounded in the same way
between their 99th and 1st percentile (RDN: their ends), computed anew in every forward pass. A gate
(`srquant.methods.gate`) scales the bounds of some tensors picture by picture: of those whose ends vary most, by
the dynamic intensity var(max) + var(min) over the batches of a first epoch in which nothing is rounded and nothing
learned. The first `int(count * dynamic_ratio)` tensors get gates. Until the epoch `gate_start_epoch` the gates
are not applied but trained towards 1, by the mean of their squared logits. Loss: L1 + skt_weight * SKT + that mean.

Deviations, all of them options, with the word that gives the released code in brackets:

- `calibration` "percentile" at all bits ["official": at 2 bit only; at 3 and 4 bit the bounds start at +-10].
- `grid` "integer", with a whole zero point and clamped codes, is what can be deployed ["official"].
- `gate` "repaired" ["official"]; see `srquant.methods.gate`. "none" leaves gates and the first epoch out.
- `gradient` "official" is that above; "indicator" leaves r out, as PACT does.
- Where the placement and `rest` leave the convolutions in front of a block: `srquant.quantizers.placement`.

Deviations without an option: pictures of the validation do not count for the dynamic intensity, and RDN's weights
are not rounded while it is measured; at 8 bit weights are symmetric, since asymmetric codes would not fit int8;
gates exist only for tensors that are rounded; no shell opens on NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.methods.base import MethodConfig, QuantizedObjective, outputs_of
from srquant.methods.flags import Flags
from srquant.methods.gate import Gate, GateKind, scales
from srquant.methods.passing import PassingBounds, PassingWeights
from srquant.methods.processes import joined
from srquant.networks.info import SRNetwork
from srquant.quantizers.gating import MOST_GATED_BITS, GatedQuantizer, PictureGrid
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.placement import get_placement
from srquant.quantizers.straight_through import Gradient, GridKind
from srquant.quantizers.weights import AsymmetricWeights, SymmetricWeights, WeightQuantizer

_WEIGHT_PERCENTILE = 99.0


class DDTBConfig(MethodConfig):
    """Options of DDTB; the defaults are the constants of its code for EDSR, on the grid that can be deployed."""

    skt_weight: float = Field(
        default=1000.0, ge=0, allow_inf_nan=False, description="of the knowledge transfer (SKT) loss; needs a teacher"
    )
    calibration: Literal["percentile", "official"] = Field(
        default="percentile", description="of the first bounds; 'official': at 2 bit only, else they start at +-10"
    )
    percentile: float = Field(default=99.0, gt=50, le=100, description="M of the first bounds; RDN 95")
    weight_range: Literal["percentile", "minmax"] = Field(
        default="percentile", description="of the weights: 99th and 1st percentile, or both ends (RDN)"
    )
    grid: GridKind = Field(default="integer", description="'integer' can be deployed, 'official' reproduces the code")
    gradient: Gradient = Field(default="official", description="of the bounds; 'indicator' is that of PACT")
    gate: Literal["official", "repaired", "none"] = Field(default="repaired", description="the gate controller")
    dynamic_ratio: float = Field(
        default=0.3, ge=0, le=1, description="P, share of tensors with a gate; EDSR .3, RDN .5, SRResNet .1"
    )
    gate_start_epoch: int = Field(default=6, ge=2, description="first epoch in which gates are applied")


class Spread(nn.Module):
    """The variance of a tensor's ends from batch to batch, in one pass.

    Attributes:
        count: int64 [], batches seen.
        mean: float64 [2], of the maxima and the minima.
        squares: float64 [2], sums of squared distances from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def see(self, values: Tensor) -> None:
        """Note the ends of a batch, of all processes together."""
        lower, upper = values.aminmax()
        ends = joined(torch.stack([upper, lower]).unsqueeze(0)).double()
        both = torch.stack([ends[:, 0].max(), ends[:, 1].min()])
        self.count += 1
        before = both - self.mean
        self.mean += before / self.count
        self.squares += before * (both - self.mean)

    def intensity(self) -> float:
        """The dynamic intensity: population variance of the maxima plus that of the minima."""
        return float((self.squares / self.count.clamp(min=1)).sum())


class GatedBoundsQuantizer(PassingBounds):
    """Trained bounds that a gate may scale picture by picture.

    Attributes:
        gate: None where the method has no gates.
        flags: "passes"; "is_dynamic": the gate of this tensor was chosen; "gates_act": chosen gates are applied.
        spread: of the tensor's ends, in the statistics epoch.
        measures: whether the ends are noted now.
    """

    def __init__(
        self,
        bits: int,
        channels: int,
        *,
        gate: GateKind | None,
        percentile: float | None = 99.0,
        grid: GridKind = "integer",
        gradient: Gradient = "official",
    ) -> None:
        super().__init__(bits, percentile=percentile, grid=grid, gradient=gradient)
        self.flags = Flags(passes=False, is_dynamic=False, gates_act=False)
        self.gate = None if gate is None else Gate(channels, gate)
        self.spread = Spread()
        self.measures = False

    @property
    def gated(self) -> bool:
        """Whether a gate scales the bounds now."""
        return self.gate is not None and self.flags["is_dynamic"] and self.flags["gates_act"]

    def bounds_for(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `BoundsQuantizer.bounds_for`; the values are [N,C,H,W]."""
        if self.measures:
            self.spread.see(values)
        bounds = super().bounds_for(values)
        if bounds is None or self.gate is None or not self.flags["is_dynamic"]:
            return bounds
        if self.gated:
            upper, lower = scales(self.gate(values))
            return lower * bounds[0], upper * bounds[1]
        if self.training:
            self.gate(values)  # its logits are regularised and its statistics settle
        return bounds

    def looks(self) -> bool:
        """See `BoundsQuantizer.looks`."""
        return super().looks() or self.measures or (self.gate is not None and self.flags["is_dynamic"])

    def deployed(self) -> ActivationQuantizer:
        """The integer grid of the trained bounds, or a gate that makes one for every picture."""
        if self.gate is None or not self.gated:
            return super().deployed()
        bounds = float(self.lower.detach()), float(self.upper.detach())
        return GatedQuantizer(PictureGrid(*bounds, self.bits, self.gate.deployed()))


def _check_gates(network: QuantizedNetwork) -> None:
    """Refuse gates where they could not be deployed.

    Raises:
        UserError: too many bits, or a placement in which several places share one low-bit grid.
    """
    how = network.quantization
    if how.rest == "int8" and how.activation_bits > MOST_GATED_BITS:
        raise UserError(
            f"method.gate = 'none' is what {how.activation_bits} bit activations allow: gates take at most "
            f"{MOST_GATED_BITS} bit"
        )
    if get_placement(how.placement).low_bit_stream:
        raise UserError(
            f"the placement '{how.placement}' rounds all tensors to few bits, gates need one that does not "
            "(strict, ddtb), or method.gate = 'none'"
        )


class DDTB(QuantizedObjective):
    """The objective of DDTB; epoch 1 gathers statistics (with gates), gates act from `gate_start_epoch` on."""

    name = "ddtb"
    config_type = DDTBConfig
    config: DDTBConfig

    def __init__(
        self, network: QuantizedNetwork, teacher: SRNetwork | None, config: DDTBConfig, learning_rate: float
    ) -> None:
        self.has_gates = config.gate != "none"
        if self.has_gates:
            _check_gates(network)
        super().__init__(network, teacher, config, learning_rate)

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """Bounds with a gate."""
        config = self.config
        starts_wide = config.calibration == "official" and old.bits > 2
        return GatedBoundsQuantizer(
            old.bits,
            old.channels,
            gate=None if config.gate == "none" else config.gate,
            percentile=None if starts_wide else config.percentile,
            grid=config.grid,
            gradient=config.gradient,
        )

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """One range per tensor."""
        if convolution.bits == 8:
            return PassingWeights(SymmetricWeights(8))
        percentile = _WEIGHT_PERCENTILE if self.config.weight_range == "percentile" else 100.0
        return PassingWeights(AsymmetricWeights(convolution.bits, percentile=percentile, grid=self.config.grid))

    def rest_weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """Symmetric per channel, once the statistics are gathered."""
        return PassingWeights(super().rest_weights(convolution))

    def low_bit_quantizers(self) -> dict[str, GatedBoundsQuantizer]:
        """The quantisers with trained bounds and gates, by name."""
        found = self.network.activation_quantizers()
        return {name: q for name, q in found.items() if isinstance(q, GatedBoundsQuantizer)}

    def learns(self, epoch: int) -> bool:
        """False in the epoch that measures the dynamic intensity."""
        return epoch > 1 or not self.has_gates

    def is_final(self, epoch: int) -> bool:
        """False until the gates act."""
        return not self.has_gates or epoch >= self.config.gate_start_epoch

    def start_epoch(self, epoch: int) -> None:
        """Choose the gates when the statistics are complete, and let them act when it is time."""
        super().start_epoch(epoch)
        for module in self.network.modules():
            if isinstance(module, PassingBounds | PassingWeights):
                module.flags["passes"] = not self.learns(epoch)
        if not self.has_gates:
            return
        quantizers = list(self.low_bit_quantizers().values())
        if epoch == 2:
            ranked = sorted(quantizers, key=lambda q: q.spread.intensity(), reverse=True)
            for place, quantizer in enumerate(ranked):
                quantizer.flags["is_dynamic"] = place < int(len(ranked) * self.config.dynamic_ratio)
        for quantizer in quantizers:
            quantizer.flags["gates_act"] = epoch >= self.config.gate_start_epoch

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """See `QuantizedObjective.forward`; the part "gate" pulls all scales towards 1 until they act."""
        if not self.learns(self.epoch):
            with self._measured():
                return super().forward(low, high)
        warms_up = self.has_gates and self.epoch < self.config.gate_start_epoch
        chosen = [q.gate for q in self.low_bit_quantizers().values() if q.gate is not None and q.flags["is_dynamic"]]
        if not warms_up or not chosen:
            return super().forward(low, high)
        with outputs_of(chosen) as logits:
            parts = super().forward(low, high)
        if not logits:  # in eval mode
            return parts
        return {**parts, "gate": torch.stack([part.square().mean() for part in logits]).mean()}

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Every low-bit quantiser notes the ends of its input."""
        quantizers = self.low_bit_quantizers().values()
        try:
            for quantizer in quantizers:
                quantizer.measures = True
            yield
        finally:
            for quantizer in quantizers:
                quantizer.measures = False
