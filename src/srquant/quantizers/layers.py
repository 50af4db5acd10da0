"""The quantised layers: a convolution and an activation that hold float values and compute on integer grids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from srquant.errors import UserError
from srquant.quantizers import grid as grids
from srquant.quantizers.grid import Grid
from srquant.quantizers.ranges import RangeObserver
from srquant.quantizers.straight_through import pass_gradient

if TYPE_CHECKING:
    from srquant.quantizers.weights import WeightQuantizer


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to one per-tensor grid.

    Until `grid` is set it passes its input on; while it holds an `observer` it also shows it every tensor.
    Training puts quantisers with trained ranges in its place; these override `forward`, `step` and
    `deployed_grid`.

    Attributes:
        bits: 2 to 8.
        grid: the grid, once chosen.
        fixed: the grid is that of pictures and never changes.
        channels: of the tensor it rounds; 0 until a trainable network was built.
        low_bit: the placement gave this tensor the requested bits, not the 8 of the rest.
    """

    def __init__(self, bits: int, grid: Grid | None = None, *, low_bit: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.grid = grid
        self.fixed = grid is not None
        self.low_bit = low_bit
        self.channels = 0
        self.observer: RangeObserver | None = None

    def step(self) -> Tensor:
        """The scale of the grid now, float32 [1], detached.

        Raises:
            RuntimeError: there is no grid yet.
        """
        return torch.tensor([self.deployed_grid().scale])

    def deployed_grid(self) -> Grid:
        """The grid that deployment computes on.

        Raises:
            RuntimeError: there is none yet.
        """
        if self.grid is None:
            raise RuntimeError("this tensor has no grid yet: calibrate first")
        return self.grid

    def channel_factors(self) -> Tensor | None:
        """What channels are multiplied by before they are rounded, float32 [C]; None where they are not."""
        return None

    def deployed(self) -> ActivationQuantizer:
        """The quantiser that stands in this one's place when the network is deployed.

        Raises:
            UserError: it cannot be deployed.
        """
        quantizer = ActivationQuantizer(self.bits, self.deployed_grid(), low_bit=self.low_bit)
        quantizer.fixed = self.fixed
        return quantizer

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, rounded to the grid once there is one.

        In training it passes them on: a fixed grid is that of pictures, which are rounded when they are written.
        """
        if self.observer is not None:
            self.observer.see(values)
        return values if self.grid is None or self.training else grids.fake_quantize(values, self.grid)

    def extra_repr(self) -> str:
        """Bits and grid, for printing."""
        return f"bits={self.bits}, grid={self.grid}"


class InputShift(nn.Module):
    """Subtracts a constant from the picture, so that the zero padding of the first convolution is that colour.

    It stands for the mean that EDSR and its relatives subtract: on codes it is nothing but a zero point.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def forward(self, values: Tensor) -> Tensor:
        """Values in 0..255, shifted to -code..255-code."""
        return values - self.code


class KeptClip(nn.Hardtanh):
    """A clip that stays an operation of its own: the tensor before it has a grid of its own values."""


@dataclass(frozen=True, eq=False)
class LayerCodes:
    """A frozen convolution as whole numbers.

    Attributes:
        weight: int8 [O,I,kH,kW], not expanded; the real weight is `weight * expansion * steps`.
        zero_points: int32 [O]; `(weight - zero_points) / spacings` lies within -2^(bits-1)..2^(bits-1)-1 and is what is
            packed.
        bias: int32 [O] on the grid input scale times `steps`.
        steps: float32 [O], the deployed (expanded) step.
        expansion: what deployment multiplies the weight by.
        spacings: int32 [O], between neighbouring weights: 1, or 2 where all of them are odd.
    """

    weight: Tensor
    zero_points: Tensor
    bias: Tensor
    steps: Tensor
    expansion: int
    spacings: Tensor

    def real_weight(self) -> Tensor:
        """Float32 [O,I,kH,kW]."""
        wide = (self.steps.double() * self.expansion).view(-1, 1, 1, 1)
        return (self.weight.double() * wide).float()

    def real_bias(self, input_scale: float) -> Tensor:
        """Float32 [O]."""
        return (self.bias.double() * self.steps.double() * input_scale).float()


class QuantConv2d(nn.Conv2d):
    """A convolution whose weights and bias lie on the grids that deployment uses.

    It has three states. Fresh, it is the float convolution. In training it holds a `weight_quantizer`, which
    rounds the weights in every forward pass. Frozen (`freeze`, `restore`), it holds codes. The bias lies on the
    accumulator's grid, input scale times deployed weight step, as every integer engine computes it.

    Attributes:
        bits: of the weights.
        low_bit: the placement gave these weights the requested bits, not the 8 of the rest.
        weight_quantizer: rounds the weights in training.
        frozen: the codes, once chosen.
        snap_bias: whether the bias is rounded to its deployed grid in training.
        fusion: computes the layer in training, its input's rounding included; see `srquant.quantizers.acceleration`.
    """

    def __init__(
        self, conv: nn.Conv2d, bits: int, source: ActivationQuantizer | None, *, low_bit: bool = False
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # pyright: ignore[reportArgumentType]
            stride=conv.stride,  # pyright: ignore[reportArgumentType]
            padding=conv.padding,  # pyright: ignore[reportArgumentType]
            groups=conv.groups,
            bias=True,
        )
        self.bits = bits
        self.low_bit = low_bit
        self.weight = nn.Parameter(conv.weight.detach().clone())
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=conv.bias is not None)
        self.weight_quantizer: WeightQuantizer | None = None
        self.snap_bias = True
        self.fusion: Callable[[QuantConv2d, Tensor], Tensor] | None = None
        self._source = (source,)  # in a tuple, so that it stays a module of the graph, not of this layer
        self.frozen: LayerCodes | None = None

    @property
    def source(self) -> ActivationQuantizer | None:
        """The quantiser of the tensor this layer reads; None where that is a float tensor."""
        return self._source[0]

    def read_from(self, quantizer: ActivationQuantizer) -> None:
        """Take `quantizer` as the one of the tensor this layer reads."""
        self._source = (quantizer,)

    @property
    def input_scale(self) -> float:
        """Scale of the tensor this layer reads."""
        if self.source is None:
            raise RuntimeError("the input of this convolution is a float tensor")
        return self.source.deployed_grid().scale

    def freeze(self, *, exact: bool) -> None:
        """Choose the weight steps after training; from now on the layer computes with codes."""
        steps = grids.weight_steps(self.weight, self.bias, self.bits, self.input_scale, exact=exact)
        weight = grids.weight_codes(self.weight, steps, self.bits)
        assert self.bias is not None
        bias = grids.bias_codes(self.bias, steps, self.input_scale)
        zero_points, spacings = (torch.full((self.out_channels,), n, dtype=torch.int32) for n in (0, 1))
        self.frozen = LayerCodes(weight, zero_points, bias, steps, grids.expansion(self.bits), spacings)

    def codes(self) -> LayerCodes:
        """The frozen layer as whole numbers.

        Raises:
            RuntimeError: the layer is not frozen.
        """
        if self.frozen is None:
            raise RuntimeError("this convolution is not frozen: it has no codes")
        return self.frozen

    def restore(self, codes: LayerCodes) -> None:
        """Take codes as `codes` returned them; the layer then computes the same again.

        Raises:
            UserError: a shape does not fit this layer.
        """
        per_channel = codes.bias, codes.steps, codes.zero_points, codes.spacings
        if codes.weight.shape != self.weight.shape or any(len(part) != self.out_channels for part in per_channel):
            raise UserError(
                f"weight codes of shape {list(codes.weight.shape)} do not fit, expected {list(self.weight.shape)}"
            )
        self.frozen = codes
        self.weight = nn.Parameter(codes.real_weight())
        self.bias = nn.Parameter(codes.real_bias(self.input_scale))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d
        """[N,C,H,W] float on the input grid -> [N,O,H,W] float, not yet on a grid."""
        if self.fusion is not None and self.weight_quantizer is not None:
            return self.fusion(self, input)
        if self.weight_quantizer is not None:
            factors = self._factors()
            weight, step = self.weight_quantizer(self.weight if factors is None else self.weight / factors)
            weight = weight if factors is None else weight * factors
            return self._convolved(input, weight, self.snapped_bias(step))
        if self.frozen is None:
            return super().forward(input)
        return self._convolved(input, self.frozen.real_weight(), self.frozen.real_bias(self.input_scale))

    def divided_weight(self) -> Tensor:
        """The weight that deployment rounds: over the factors that the input's channels are multiplied by."""
        factors = self._factors()
        return self.weight if factors is None else self.weight / factors

    def _factors(self) -> Tensor | None:
        """The factors of the input's channels as they meet the weight, [O,I,1,1] or [1,I,1,1]; None without them."""
        factors = None if self.source is None else self.source.channel_factors()
        if factors is None:
            return None
        rows = factors.view(self.groups, 1, -1, 1, 1).expand(-1, self.out_channels // self.groups, -1, 1, 1)
        return rows.flatten(0, 1) if self.groups > 1 else factors.view(1, -1, 1, 1)

    def _convolved(self, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(values, weight, bias, self.stride, self.padding, 1, self.groups)

    def snapped_bias(self, step: Tensor) -> Tensor:
        """The bias on the accumulator's grid, straight-through."""
        assert self.bias is not None
        if not self.snap_bias or self.source is None:
            return self.bias
        grid = self.source.step().to(step.device) * step
        return pass_gradient(self.bias, torch.round(self.bias.detach() / grid) * grid)
