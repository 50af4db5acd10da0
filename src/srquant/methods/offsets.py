"""Selective distribution offsets of ODM's first version (Hong and Lee, 2023): channels are moved and scaled.

Paper: https://arxiv.org/abs/2307.13337v1. Where the means of a layer input's channels lie far apart, one grid cannot
hold all channels; such inputs get a trained shift per channel, those whose deviations differ a trained scale. With mu_c
and sigma_c the mean and the deviation of channel c over the statistics batches, inputs are ranked by

    m_mean = std_c(mu_c)/mean_c(sigma_c)  for shifts;   m_dev = std_c(sigma_c)/mean_c(sigma_c)  for scales
    x' = A_c*x + S_c;   q(x) = (round(x' between l and u) - S_c)/A_c;   weights that read x: A_c*round(W_c/A_c)

and trained are t_c = S_c/s, the shift in steps s of the grid, and log A_c.

The paper's text says no more than that; it has no code. Ours, and not the paper's:

- Measures and ranking as above. Of the tensors that can be shifted the share `offset_ratio` is, those with the largest
  m_mean: rounded, and at least one; of those that can be scaled the same share by m_dev. One input may get both. RDN
  has few that can (16 of 128 under the placement `daq`): the others are parts of concatenations.
- t is rounded to whole steps, straight-through, so that shifts are undone by nothing when the network runs; what they
  cost is told in `srquant.quantizers.offsets`. `offset_steps = "free"` leaves t real; that is a simulation which cannot
  be deployed.
- t and log A are free of the network's range of values, and so is their rate, `offset_learning_rate`. Weights are
  rounded behind the division by A, which makes it exact to undo.
- `offset_bits = b` gives both so many bits: t is a signed number of b bits, log2 A one in steps of 4/2^b octaves,
  rounded straight-through (4 bit: A from 1/4 to 2^1.75); neither is driven further beyond its ends. Files hold them
  packed at b bits (`srquant.quantizers.offset_codes`). Without, t may move a window as far as 8-bit codes reach, A is
  any factor, and files hold windows as 8-bit codes and factors in float32. Free shifts have no bits. Where a
  convolution makes the tensor, A goes into its steps, which are float32 anyway, and is not stored at all.
- Shifts start at 0 and scales at 1, where the network computes what it did without them. `offset_start = "statistics"`
  starts scales at A_c = mean(sigma)/sigma_c and shifts at S_c = mean(A*mu) - A_c*mu_c, the bounds anew from the first
  batch so moved, and t = S/s with their step; all within what `offset_bits` and the carrier hold.
- Inputs that are concatenated, shuffled, sliced or added keep one grid; scales need a convolution (with normalisation
  and ReLU) or an 8-bit tensor in front of them, unless the rest is in float, which cannot be deployed anyway.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.methods.base import MethodConfig
from srquant.methods.channel_statistics import ChannelStatistics
from srquant.methods.flags import Flags
from srquant.methods.passing import PassingBounds
from srquant.quantizers.kernels import SMALLEST_RANGE, integer_grid
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.offset_codes import factor_levels, round_factors
from srquant.quantizers.offsets import (
    MOST_WINDOW_BITS,
    can_scale,
    can_shift,
    channel_quantizer,
    round_to_windows,
    window_starts,
)
from srquant.quantizers.straight_through import fake_quantize_between
from srquant.quantizers.structure import Structure


class OffsetConfig(MethodConfig):
    """Options of a method whose low-bit tensors may have offsets."""

    offsets: Literal["none", "shift", "scale", "both"] = Field(
        default="none", description="of channels, trained, where their means (shift) or deviations (scale) differ most"
    )
    offset_ratio: float = Field(
        default=0.3, gt=0, le=1, description="share with shifts, and with scales, of the tensors that can have them"
    )
    offset_learning_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of shifts, in steps, and of the scales' logarithms; by default that of the ranges",
    )
    offset_bits: int | None = Field(
        default=None,
        ge=2,
        le=8,
        description="of each shift (whole steps) and scale (4/2^bits octaves), trained and stored; by default shifts "
        "have 8 bit and scales float32",
    )
    offset_steps: Literal["whole", "free"] = Field(
        default="whole", description="of shifts; 'whole' can be deployed, 'free' is a simulation"
    )
    offset_start: Literal["neutral", "statistics"] = Field(
        default="neutral", description="shifts of 0 and scales of 1, or those that make means and deviations alike"
    )


class OffsetBounds(PassingBounds):
    """Trained bounds of a tensor whose channels may be shifted and scaled; call `prepare_offsets` in `__init__`.

    Attributes:
        shift_steps: float32 [C], t, before it is rounded; trained.
        log_factors: float32 [C], the logarithm of A, before it is rounded; trained.
        factor_levels: float32 [2^offset_bits], what A is rounded to; None where it is not.
        offsets: "shifts", "scales": what this tensor was chosen for.
        statistics: of its channels.
        measures: whether the statistics are gathered now.
        config: the options.
    """

    plain: ClassVar[bool] = False
    measures: bool = False
    factor_levels: Tensor | None

    def prepare_offsets(self, channels: int, config: OffsetConfig) -> None:
        """Make the parameters, which leave the tensor as it is until they are chosen to act."""
        self.shift_steps = nn.Parameter(torch.zeros(channels))
        self.log_factors = nn.Parameter(torch.zeros(channels))
        self.offsets = Flags(shifts=False, scales=False)
        self.statistics = ChannelStatistics(channels)
        self.config = config
        levels = None if config.offset_bits is None else torch.from_numpy(factor_levels(config.offset_bits))
        self.register_buffer("factor_levels", levels, persistent=False)

    def bounds_for(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `BoundsQuantizer.bounds_for`; the values are [N,C,H,W]."""
        if self.measures:
            self.statistics.see(values)
        return super().bounds_for(values)

    def looks(self) -> bool:
        """See `BoundsQuantizer.looks`."""
        return super().looks() or self.measures

    @torch.no_grad()
    def set_from(self, values: Tensor) -> None:
        """See `BoundsQuantizer.set_from`; the bounds are those of the scaled and shifted values."""
        factors, means = self.channel_factors(), self.statistics.mean
        if factors is not None:
            values, means = values * factors.view(1, -1, 1, 1), means * factors
        if not self.offsets["shifts"] or self.config.offset_start == "neutral":
            super().set_from(values)
            return
        shift = (means.mean() - means).float()
        super().set_from(values + shift.view(1, -1, 1, 1))
        self.shift_steps.copy_(shift / self.step())
        if self.config.offset_steps == "whole":
            held = self.window_starts() + integer_grid(self.lower, self.upper, self.bits)[1]
            self.shift_steps.clamp_(-held - 0.5, 0.5 - held)

    def round(self, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """See `BoundsQuantizer.round`; scaled and shifted before, and back behind."""
        factors = self.channel_factors()
        if factors is None:
            return self._round(values, lower, upper)
        wide = factors.view(1, -1, 1, 1)
        return (self._round(values * wide, lower, upper) / wide).to(values.dtype)

    def _round(self, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        if not self.offsets["shifts"]:
            return super().round(values, lower, upper)
        if self.config.offset_steps == "free":
            step = (upper.clamp(min=0) - lower.clamp(max=0)).clamp(min=SMALLEST_RANGE) / (2**self.bits - 1)
            shift = (self.shift_steps * step).view(1, -1, 1, 1)
            moved = fake_quantize_between(values + shift, lower, upper, self.bits, gradient=self.gradient)
            return (moved - shift).to(values.dtype)
        bits, steps = self.bits, self.config.offset_bits
        return round_to_windows(values, lower, upper, self.shift_steps, bits, offset_bits=steps, gradient=self.gradient)

    def channel_factors(self) -> Tensor | None:
        """See `ActivationQuantizer.channel_factors`."""
        if not self.offsets["scales"]:
            return None
        levels = self.factor_levels
        return self.log_factors.exp() if levels is None else round_factors(self.log_factors, levels)

    def window_starts(self) -> Tensor:
        """The lowest code of each channel; see `srquant.quantizers.offsets.window_starts`."""
        return window_starts(self.shift_steps, self.lower, self.upper, self.bits, self.config.offset_bits)

    def deployed(self) -> ActivationQuantizer:
        """The carrier grid with the windows and factors that were trained; see `srquant.quantizers.offsets`.

        Raises:
            UserError: the shifts are free.
        """
        self.deployed_grid()
        lowest = None
        if self.offsets["shifts"]:
            if self.config.offset_steps == "free":
                raise UserError(
                    "trained with method.offset_steps = 'free', which no integers compute; train with 'whole'"
                )
            lowest = self.window_starts()
        factors = self.channel_factors()
        return channel_quantizer(self.lower, self.upper, self.bits, lowest, factors, self.config.offset_bits)

    @torch.no_grad()
    def act(self, *, shifts: bool, scales: bool) -> None:
        """Let the offsets that this tensor was chosen for act from now on."""
        self.offsets["shifts"], self.offsets["scales"] = shifts, scales
        if self.config.offset_start == "neutral" or not (shifts or scales):
            return
        self.initialised.fill_(False)
        if scales:
            deviation = self.statistics.deviation()
            mean = deviation.mean().clamp(min=SMALLEST_RANGE)
            start = mean / deviation.clamp(min=0.01 * mean)
            if self.factor_levels is not None:
                start = start.clamp(*self.factor_levels[[0, -1]].double())
            self.log_factors.copy_(start.log())


def shiftable(network: QuantizedNetwork) -> list[str]:
    """Names of the low-bit tensors that may have offsets, in the order of execution; see `can_shift`."""
    structure = Structure(network.graph)
    return [name for name, q in network.activation_quantizers().items() if q.low_bit and can_shift(structure, name)]


def scalable(network: QuantizedNetwork) -> list[str]:
    """Those of `shiftable` that may have factors; all of them, where the rest is in float."""
    structure, is_float = Structure(network.graph), network.quantization.rest == "float"
    return [name for name in shiftable(network) if is_float or can_scale(structure, name)]


def offset_parameters(network: QuantizedNetwork) -> list[nn.Parameter]:
    """The shifts and the logarithms of the factors of all tensors."""
    found = [q for q in network.activation_quantizers().values() if isinstance(q, OffsetBounds)]
    return [parameter for q in found for parameter in (q.shift_steps, q.log_factors)]


def check_offsets(network: QuantizedNetwork, config: OffsetConfig) -> None:
    """Refuse offsets where there can be none.

    Raises:
        UserError: too many bits, a kernel that rounds all channels alike, or no tensor that could have them.
    """
    how = network.quantization
    if how.activation_bits > MOST_WINDOW_BITS:
        raise UserError(
            f"method.offsets = 'none' is what {how.activation_bits} bit activations allow: offsets take at most "
            f"{MOST_WINDOW_BITS} bit"
        )
    if any(isinstance(c.source, OffsetBounds) and c.fusion is not None for c in network.convolutions().values()):
        raise UserError(
            f"method.offsets = '{config.offsets}' needs training.kernel = 'eager' or 'compiled': the others round all "
            "channels of a tensor alike"
        )
    scales = config.offsets == "scale"
    if not (scalable(network) if scales else shiftable(network)):
        raise UserError(
            f"no low-bit tensor of '{network.info.name}' under the placement '{how.placement}' can have offsets, since "
            f"none is read by convolutions alone{' and made by one' * scales}; use method.offsets = 'none' or another "
            "placement"
        )


def choose_offsets(network: QuantizedNetwork, config: OffsetConfig) -> None:
    """Choose the tensors that are shifted and scaled, by their statistics."""
    tensors = {n: q for n, q in network.activation_quantizers().items() if isinstance(q, OffsetBounds)}
    means = {name: quantizer.statistics.mismatch_of_means() for name, quantizer in tensors.items()}
    deviations = {name: tensors[name].statistics.mismatch_of_deviations() for name in scalable(network)}
    shifted = _largest(means, config.offset_ratio) if config.offsets != "scale" else []
    scaled = _largest(deviations, config.offset_ratio) if config.offsets != "shift" else []
    for name, quantizer in tensors.items():
        quantizer.act(shifts=name in shifted, scales=name in scaled)


def _largest(measures: dict[str, float], ratio: float) -> list[str]:
    """The names with the largest measures: this share of them, rounded, and at least one where there is one."""
    ordered = sorted(measures, key=lambda name: measures[name], reverse=True)
    return ordered[: max(1, int(len(ordered) * ratio + 0.5))]
