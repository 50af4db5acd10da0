"""Selective distribution offsets of ODM's first version (Hong and Lee, 2023): channels are moved and scaled.

Paper: https://arxiv.org/abs/2307.13337v1. Where the means of a layer input's channels lie far apart, one grid cannot
hold all channels; such inputs get a trained shift per channel, those whose deviations differ a trained scale. With mu_c
and sigma_c the mean and the deviation of channel c over the statistics batches, inputs are ranked by

    m_mean = std_c(mu_c)/mean_c(sigma_c)  for shifts;   m_dev = std_c(sigma_c)/mean_c(sigma_c)  for scales
    x' = A_c*x + S_c;   q(x) = (round(x' between l and u) - S_c)/A_c;   weights that read x: A_c*round(W_c/A_c)

The paper's text says no more than that; it has no code. Ours, and not the paper's:

- Measures and ranking as above; the first `int(count * offset_ratio)` of all low-bit tensors by each measure. One input
  may get both.
- S counts in whole steps of the grid, rounded straight-through, so that it costs next to nothing when the network runs:
  `srquant.quantizers.offsets` tells how it is deployed. `offset_steps = "free"` leaves it real; that is a simulation
  which cannot be deployed.
- A is trained through its logarithm, and weights are rounded behind the division, which makes both exact to undo.
- `offset_bits = b` gives both so many bits: S is a signed number of b bits, log2 A one in steps of 4/2^b octaves,
  rounded straight-through (4 bit: A from 1/4 to 2^1.75); neither is driven further beyond its ends. Files hold them
  packed at b bits (`srquant.quantizers.offset_codes`). Without, S may move a window as far as 8-bit codes reach, A is
  any factor, and files hold windows as 8-bit codes and factors in float32. Free shifts have no bits. Where a
  convolution makes the tensor, A goes into its steps, which are float32 anyway, and is not stored at all.
- Shifts start at 0 and scales at 1, where the network computes what it did without them. `offset_start = "statistics"`
  starts scales at mean(sigma)/sigma_c, within what `offset_bits` holds, and the bounds anew.
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
from srquant.methods.flags import Flags
from srquant.methods.passing import PassingBounds
from srquant.methods.processes import joined
from srquant.quantizers.kernels import SMALLEST_RANGE
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
    offset_ratio: float = Field(default=0.3, ge=0, le=1, description="share of tensors with shifts, and with scales")
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
        default="neutral", description="of scales: 1, or the mean deviation over the channel's"
    )


class ChannelStatistics(nn.Module):
    """Mean and deviation of every channel of a tensor, in one pass over batches of all processes.

    Attributes:
        count: float64 [], values of a channel that were seen.
        mean: float64 [C].
        squares: float64 [C], sums of squared distances from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(channels, dtype=torch.float64))

    @torch.no_grad()
    def see(self, values: Tensor) -> None:
        """Note a batch [N,C,H,W]."""
        parts = torch.stack(torch.var_mean(values.float(), (0, 2, 3), correction=0)).unsqueeze(0)
        seen = values.numel() / values.shape[1]
        for variance, mean in joined(parts).double():
            before, total = mean - self.mean, self.count + seen
            self.squares += variance * seen + before.square() * (self.count * seen / total)
            self.mean += before * (seen / total)
            self.count.copy_(total)

    def deviation(self) -> Tensor:
        """The (population) standard deviation of every channel, float64 [C]."""
        return (self.squares / self.count.clamp(min=1)).sqrt()

    def mismatch_of_means(self) -> float:
        """m_mean of the module's docstring."""
        return self._spread(self.mean)

    def mismatch_of_deviations(self) -> float:
        """m_dev of the module's docstring."""
        return self._spread(self.deviation())

    def _spread(self, values: Tensor) -> float:
        return float(values.std(correction=0) / self.deviation().mean().clamp(min=SMALLEST_RANGE))


class OffsetBounds(PassingBounds):
    """Trained bounds of a tensor whose channels may be shifted and scaled; call `prepare_offsets` in `__init__`.

    Attributes:
        shift: float32 [C], S, in the units of the scaled tensor; trained.
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
        self.shift = nn.Parameter(torch.zeros(channels))
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

    def set_from(self, values: Tensor) -> None:
        """See `BoundsQuantizer.set_from`; the bounds are those of the scaled values."""
        factors = self.channel_factors()
        super().set_from(values if factors is None else values.detach() * factors.detach().view(1, -1, 1, 1))

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
            shift = self.shift.view(1, -1, 1, 1)
            moved = fake_quantize_between(values + shift, lower, upper, self.bits, gradient=self.gradient)
            return (moved - shift).to(values.dtype)
        bits, steps = self.bits, self.config.offset_bits
        return round_to_windows(values, lower, upper, self.shift, bits, offset_bits=steps, gradient=self.gradient)

    def channel_factors(self) -> Tensor | None:
        """See `ActivationQuantizer.channel_factors`."""
        if not self.offsets["scales"]:
            return None
        levels = self.factor_levels
        return self.log_factors.exp() if levels is None else round_factors(self.log_factors, levels)

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
            lowest = window_starts(self.shift, self.lower, self.upper, self.bits, self.config.offset_bits)
        factors = self.channel_factors()
        return channel_quantizer(self.lower, self.upper, self.bits, lowest, factors, self.config.offset_bits)

    @torch.no_grad()
    def act(self, *, shifts: bool, scales: bool) -> None:
        """Let the offsets that this tensor was chosen for act from now on."""
        self.offsets["shifts"], self.offsets["scales"] = shifts, scales
        if scales and self.config.offset_start == "statistics":
            deviation = self.statistics.deviation()
            mean = deviation.mean().clamp(min=SMALLEST_RANGE)
            start = mean / deviation.clamp(min=0.01 * mean)
            if self.factor_levels is not None:
                start = start.clamp(*self.factor_levels[[0, -1]].double())
            self.log_factors.copy_(start.log())
            self.initialised.fill_(False)


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
    structure = Structure(network.graph)
    if not any(can_shift(structure, name) for name in _candidates(network)):
        raise UserError(
            f"no low-bit tensor of '{network.info.name}' under the placement '{how.placement}' can have offsets, since "
            "none is read by convolutions alone; use method.offsets = 'none' or another placement"
        )


def choose_offsets(network: QuantizedNetwork, config: OffsetConfig) -> None:
    """Choose the tensors that are shifted and scaled, by their statistics."""
    structure, tensors = Structure(network.graph), _candidates(network)
    count = int(len(tensors) * config.offset_ratio)
    shifted = [name for name in tensors if config.offsets in ("shift", "both") and can_shift(structure, name)]
    may_scale = can_shift if network.quantization.rest == "float" else can_scale
    scaled = [name for name in tensors if config.offsets in ("scale", "both") and may_scale(structure, name)]
    shifted.sort(key=lambda name: tensors[name].statistics.mismatch_of_means(), reverse=True)
    scaled.sort(key=lambda name: tensors[name].statistics.mismatch_of_deviations(), reverse=True)
    for name, quantizer in tensors.items():
        quantizer.act(shifts=name in shifted[:count], scales=name in scaled[:count])


def _candidates(network: QuantizedNetwork) -> dict[str, OffsetBounds]:
    quantizers = network.activation_quantizers()
    return {name: q for name, q in quantizers.items() if isinstance(q, OffsetBounds) and q.low_bit}
