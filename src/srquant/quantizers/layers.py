"""The quantised layers: a convolution and an activation that hold float values and compute on integer grids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from srquant.errors import UserError
from srquant.quantizers import grid as grids
from srquant.quantizers.grid import Grid
from srquant.quantizers.ranges import RangeObserver


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to one per-tensor grid.

    Until `grid` is set it passes its input on; while it holds an `observer` it also shows it every tensor.
    """

    def __init__(self, bits: int, grid: Grid | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.grid = grid
        self.fixed = grid is not None
        self.observer: RangeObserver | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, rounded to the grid once there is one."""
        if self.observer is not None:
            self.observer.see(values)
        return values if self.grid is None else grids.fake_quantize(values, self.grid)

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


class QuantConv2d(nn.Conv2d):
    """A convolution whose weights and bias lie on the grids that deployment uses.

    Before `freeze` it is the float convolution. After it, weights are symmetric codes per output channel and the
    bias lies on the accumulator's grid (input scale times weight step), as every integer engine computes it.
    """

    steps: Tensor | None

    def __init__(self, conv: nn.Conv2d, bits: int, source: ActivationQuantizer) -> None:
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
        self.weight = nn.Parameter(conv.weight.detach().clone())
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias)
        self._source = (source,)  # in a tuple, so that it stays a module of the graph, not of this layer
        self.register_buffer("steps", None)

    @property
    def input_scale(self) -> float:
        """Scale of the tensor this layer reads."""
        source = self._source[0].grid
        if source is None:
            raise RuntimeError("the input of this convolution has no grid yet: calibrate first")
        return source.scale

    def freeze(self, *, exact: bool) -> None:
        """Choose the weight steps; from now on the layer computes with codes."""
        self.steps = grids.weight_steps(self.weight, self.bias, self.bits, self.input_scale, exact=exact)

    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight codes int8 [O,I,kH,kW] (unexpanded), bias codes int32 [O], deployed steps float32 [O]."""
        if self.steps is None:
            raise RuntimeError("this convolution is not frozen: it has no codes")
        assert self.bias is not None
        weight = grids.weight_codes(self.weight, self.steps, self.bits)
        return weight, grids.bias_codes(self.bias, self.steps, self.input_scale), self.steps

    def restore(self, weight: Tensor, bias: Tensor, steps: Tensor) -> None:
        """Take codes and steps as `codes` returned them; the layer then computes the same again.

        Raises:
            UserError: a shape does not fit this layer.
        """
        if weight.shape != self.weight.shape or bias.shape != steps.shape or len(bias) != len(weight):
            raise UserError(
                f"weight codes of shape {list(weight.shape)} do not fit, expected {list(self.weight.shape)}"
            )
        self.steps = steps.clone()
        self.weight = nn.Parameter(self._dequantized(weight))
        self.bias = nn.Parameter((bias.double() * steps.double() * self.input_scale).float())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Conv2d
        """[N,C,H,W] float on the input grid -> [N,O,H,W] float, not yet on a grid."""
        if self.steps is None:
            return super().forward(input)
        weight, bias, steps = self.codes()
        bias_values = (bias.double() * steps.double() * self.input_scale).float()
        return functional.conv2d(
            input, self._dequantized(weight), bias_values, self.stride, self.padding, 1, self.groups
        )

    def _dequantized(self, codes: Tensor) -> Tensor:
        assert self.steps is not None
        wide = (self.steps.double() * grids.expansion(self.bits)).view(-1, 1, 1, 1)
        return (codes.double() * wide).float()
