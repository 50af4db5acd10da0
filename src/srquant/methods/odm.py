"""ODM: overcoming distribution mismatch in quantizing image super-resolution networks (Hong and Lee, ECCV 2024).

Paper: https://arxiv.org/abs/2307.13337; its version 2 is that of the conference, version 1 of 2023 differs. There is no
code. Version 2, with b bits and n = 2^b - 1, every layer's input X between trained bounds l and u:

    q(X) = round((clip(X, l, u) - l)/s)*s + l;  s = (u - l)/n
    weights: the same between -u_w and u_w;  u_w = gamma * f(W), f the 99th percentile, gamma trained from 1
    loss = L1;  regulariser M = sum over layers of ||X - q(X)||_2
    theta <- theta - rate * (dL1 + lambda * sim * dM);  sim = (cos(dL1, dM) + 1)/2;  lambda = 1e-5 (RDN 1e-6)

The bounds start at the averages of the 1st and 99th percentiles over training batches; they and gamma have ten times
the learning rate. Rates of ranges are in the network's own values, as in public codes: where white is 1
(`NetworkInfo.peak`), ranges move 255 times as fast, for their size, as in 0..255. M is no mean, so lambda belongs to
batches of 8 and to networks in 0..255; where white is 1, M counts 255 times. Version 1 has no weight clipping
correction, regularises the standard deviation of X, and takes the regulariser's gradient only where its sign is that of
the reconstruction's:

    regulariser = "variance", regulariser_share = 0.05, gate = "sign", granularity = "element", weight_clipping = "max",
    offsets = "both"

The paper leaves much open. Options (the regulariser's are told in `srquant.methods.cooperation`):

- `calibration_batches`: 100, but no more than the first epoch has; in them nothing is rounded and nothing learned.
- `clip_rule`: f is the percentile of |W|; of W itself, or the largest |W|.
- `weight_clipping`: for the paper's ablation also without gamma ("percentile", "max") or with u_w trained ("learned").
- `offsets` of version 1 are told in `srquant.methods.offsets`; they go with either regulariser.
- `cooperation`: gradients of parameters, in two passes. "features" is another reading, in one pass.
- `granularity`: one cosine for each parameter tensor.
- `mismatch_gradient`: q(X) is a constant in M; "straight-through" moves nothing but clipped values.
- `regulariser_share`: version 1 tells no lambda; it is then chosen in the first step that learns.

Decided without an option:

- M sums over the rounded inputs of low-bit convolutions, not over skips and outputs of blocks, rounded or not.
- f(W) is a constant to the gradient of W, and bounds start at plain averages.
- The regulariser moves weights, biases, slopes and normalisation, never ranges, gammas and offsets. With
  `cooperation = "features"` what lies behind a regularised tensor cannot be told apart, so these move, too.
- Tensors with offsets are chosen by measures of our own, and scales are trained through their logarithms.

Deviations: `grid` "integer" has a whole zero point, so that it can be deployed ["official": the formula above]; at 8
bit weights are symmetric per tensor. RDN has 128 low-bit convolutions under the placement `daq`, while the storage that
the paper tells comes to 144, with the 16 local fusions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from srquant.config import TrainingConfig
from srquant.errors import UserError
from srquant.methods import cooperation
from srquant.methods.averaged import AveragedBounds, averaging
from srquant.methods.base import QuantizedObjective
from srquant.methods.flags import Flags
from srquant.methods.offsets import (
    OffsetBounds,
    OffsetConfig,
    check_offsets,
    choose_offsets,
    offset_parameters,
    shiftable,
)
from srquant.methods.passing import PassingBounds, PassingWeights
from srquant.methods.regularising import CooperationConfig, Watch
from srquant.networks.info import SRNetwork
from srquant.quantizers.clipped_weights import ClippedWeights, ClipRule
from srquant.quantizers.folding import PICTURE_PEAK
from srquant.quantizers.layers import ActivationQuantizer, QuantConv2d
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.straight_through import Gradient, GridKind
from srquant.quantizers.weights import SymmetricWeights, WeightQuantizer

_RANGES_RATE = 10


class ODMConfig(OffsetConfig, CooperationConfig):
    """Options of ODM; the defaults are version 2, on the grid that can be deployed."""

    bounds_learning_rate: float | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of the low-bit ranges, in the network's own values; by default 10 times the network's",
    )
    grid: GridKind = Field(default="integer", description="'integer' can be deployed, 'official' is the paper's")
    gradient: Gradient = Field(default="official", description="of bounds and clips; 'indicator' is that of PACT")
    percentile: float = Field(default=99.0, gt=50, le=100, description="of the first bounds and of the weights' clip")
    calibration_batches: int = Field(
        default=100, ge=0, description="whose percentiles are averaged, within the first epoch; 0: the first one alone"
    )
    weight_clipping: Literal["corrected", "percentile", "learned", "max"] = Field(
        default="corrected", description="of weights: gamma times the rule, the rule alone, a trained clip, the largest"
    )
    clip_rule: ClipRule = Field(default="magnitude", description="percentile of |W|, of W ('signed'), or the largest")
    clip_learning_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of gamma or a trained clip; by default 10 times the network's",
    )


class AveragedOffsets(AveragedBounds, OffsetBounds):
    """Averaged bounds of a tensor whose channels may have offsets."""

    def __init__(self, bits: int, channels: int, config: ODMConfig) -> None:
        super().__init__(bits, percentile=config.percentile, grid=config.grid, gradient=config.gradient)
        self.prepare_offsets(channels, config)


class ODM(QuantizedObjective):
    """The objective of ODM.

    Attributes:
        batches: that the bounds were averaged over; part of the state.
        regulariser_weight: float32 [], lambda for the network's own range of values; part of the state.
        flags: "is_weighted": lambda is known; "has_offsets": the tensors with offsets are chosen, if there are any.
    """

    name = "odm"
    config_type = ODMConfig
    config: ODMConfig
    regulariser_weight: Tensor

    def __init__(
        self, network: QuantizedNetwork, teacher: SRNetwork | None, config: ODMConfig, learning_rate: float
    ) -> None:
        if config.cooperation == "features" and config.granularity == "global":
            raise UserError(
                "method.granularity = 'global' needs method.cooperation = 'parameters'; 'features' allows 'element' "
                "and 'tensor'"
            )
        fast = _RANGES_RATE * learning_rate
        if config.offsets != "none" and (config.grid == "official" or not config.calibration_batches):
            raise UserError(
                f"method.offsets = '{config.offsets}' needs method.grid = 'integer' and calibration_batches above 0"
            )
        bounds_rate = config.bounds_learning_rate or fast
        rates = {
            "bounds_learning_rate": bounds_rate,
            "offset_learning_rate": config.offset_learning_rate or bounds_rate,
            "clip_learning_rate": config.clip_learning_rate or fast,
        }
        super().__init__(network, teacher, config.model_copy(update=rates), learning_rate)
        if config.offsets != "none":
            able = shiftable(network)
            network.replace_quantizers(
                lambda name, old: AveragedOffsets(old.bits, old.channels, self.config) if name in able else old
            )
        self.batches = 0
        self.register_buffer(
            "regulariser_weight", torch.tensor(config.regulariser_weight * PICTURE_PEAK / network.info.peak)
        )
        self.flags = Flags(is_weighted=config.regulariser_share is None, has_offsets=config.offsets == "none")
        self.train()

    def quantizer(self, old: ActivationQuantizer) -> ActivationQuantizer:
        """Trained bounds."""
        config = self.config
        return AveragedBounds(old.bits, percentile=config.percentile, grid=config.grid, gradient=config.gradient)

    def weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """One clip per tensor."""
        if convolution.bits == 8:
            return PassingWeights(SymmetricWeights(8))
        config = self.config
        how = config.weight_clipping
        return PassingWeights(
            ClippedWeights(
                convolution.bits,
                convolution.weight,
                clipping="rule" if how in ("percentile", "max") else how,
                rule="max" if how == "max" else config.clip_rule,
                percentile=config.percentile,
                gradient=config.gradient,
            )
        )

    def rest_weights(self, convolution: QuantConv2d) -> WeightQuantizer:
        """Symmetric per channel, once the bounds are averaged."""
        return PassingWeights(super().rest_weights(convolution))

    def learns(self, epoch: int) -> bool:
        """False in the first epoch until the bounds are averaged."""
        return epoch > 1 or self.batches >= self.config.calibration_batches

    def is_final(self, epoch: int) -> bool:
        """True of epochs to come: each of them ends so."""
        return epoch > self.epoch or self.learns(epoch)

    def check(self, training: TrainingConfig) -> None:
        """See `QuantizedObjective.check`."""
        super().check(training)
        steps, batches = training.steps_per_epoch, self.config.calibration_batches
        if training.epochs == 1 and steps <= batches:
            raise UserError(
                f"training.epochs = 1 is too short for odm: nothing is learned in the {steps} steps, since the bounds "
                f"are averaged in the first method.calibration_batches = {batches}"
            )
        if self.config.offsets != "none":
            check_offsets(self.network, self.config)

    def start_epoch(self, epoch: int) -> None:
        """Enter an epoch, from 1."""
        super().start_epoch(epoch)
        self._set_phase()

    def _set_phase(self) -> None:
        passes = not self.learns(self.epoch)
        for module in self.network.modules():
            if isinstance(module, PassingBounds | PassingWeights):
                module.flags["passes"] = passes
        if not passes:
            self.network.train()
            if not self.flags["has_offsets"]:
                choose_offsets(self.network, self.config)
                self.flags["has_offsets"] = True

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """See `QuantizedObjective.forward`; the part "regulariser" is lambda * M."""
        if not self.learns(self.epoch):
            with averaging(self.network):
                parts = super().forward(low, high)
            if self.training:
                self.batches += 1
                self._set_phase()
            return parts
        config, share = self.config, self.config.regulariser_share
        if config.gate == "off" or not torch.is_grad_enabled():
            return super().forward(low, high)
        if share is not None and not self.flags["is_weighted"]:
            self._choose_weight(share, low, high)
        pull = None if self.apart else cooperation.Pull(config.gate, config.granularity, self.regulariser_weight)
        with self._watch(pull).over(self.network) as terms:
            parts = super().forward(low, high)
        return {**parts, "regulariser": self.regulariser_weight * torch.stack(terms).sum()} if terms else parts

    @property
    def apart(self) -> frozenset[str]:
        """See `srquant.training.objective.Combining`."""
        two_passes = self.config.cooperation == "parameters" and self.config.gate != "off"
        return frozenset({"regulariser"} if two_passes else ())

    def combine(
        self,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor | None],
        apart: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """See `srquant.training.objective.Combining`; ranges and clips keep the gradient of the loss."""
        if self.config.gate == "off":
            return list(gradients)
        known = {id(parameter) for parameter in self._regularised_parameters()}
        kept = [extra if id(parameter) in known else None for parameter, extra in zip(parameters, apart, strict=True)]
        return cooperation.combined(gradients, kept, self.config.gate, self.config.granularity)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As in `QuantizedObjective`, and the trained clips of weights and the offsets of channels."""
        clips, offsets = self._clips(), offset_parameters(self.network)
        known = {id(parameter) for parameter in (*clips, *offsets)}
        groups = super().parameter_groups()
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        groups.append({"name": "clips", "params": clips, "lr": self.config.clip_learning_rate})
        groups.append({"name": "offsets", "params": offsets, "lr": self.config.offset_learning_rate})
        return [group for group in groups if group["params"]]

    def get_extra_state(self) -> Tensor:
        """Epoch and averaged batches, for `state_dict`."""
        return torch.tensor([self.epoch, self.batches])

    def set_extra_state(self, state: Tensor) -> None:
        """Take them back from `state_dict`."""
        self.epoch, self.batches = map(int, state)

    def _clips(self) -> list[nn.Parameter]:
        modules = self.network.modules()
        return [p for module in modules if isinstance(module, ClippedWeights) for p in module.parameters()]

    def _regularised_parameters(self) -> list[nn.Parameter]:
        return next(group["params"] for group in self.parameter_groups() if group["name"] == "network")

    def _watch(self, pull: cooperation.Pull | None) -> Watch:
        return Watch(self.config.regulariser, self.config.mismatch_gradient == "detached", pull)

    def _choose_weight(self, share: float, low: Tensor, high: Tensor) -> None:
        """Lambda from the two gradients of this batch; batch normalisation counts the batch once more."""
        with self._watch(None).over(self.network) as terms:
            parts = super().forward(low, high)
        if not terms:
            return
        loss, regulariser = torch.stack(list(parts.values())).sum(), torch.stack(terms).sum()
        parameters = self._regularised_parameters()
        self.regulariser_weight.copy_(cooperation.weight_of_share(share, loss, regulariser, parameters))
        self.flags["is_weighted"] = True
