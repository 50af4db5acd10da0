"""An activation quantiser with a trainable lower and upper bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import ActivationQuantizer
from srquant.quantizers.straight_through import Gradient, GridKind, Kernel, fake_quantize_between, integer_grid


class BoundsQuantizer(ActivationQuantizer):
    """Rounds a tensor to the grid between two trained bounds, one pair per tensor.

    Attributes:
        lower: float32 [1], trained.
        upper: float32 [1], trained.
        initialised: bool [], whether the bounds were set from data; saved with the state.
        percentile: of the values kept by the first training batch's range; None leaves the bounds as they are.
        watch: called with this quantiser, the values it is about to round and their bounds: a method may note the
            values, or hook on their gradient.
        plain: whether `round` is that of this class on the integer grid.
    """

    plain: ClassVar[bool] = True
    initialised: Tensor

    def __init__(
        self,
        bits: int,
        *,
        percentile: float | None = 99.0,
        start: float = 10.0,
        grid: GridKind = "integer",
        gradient: Gradient = "official",
    ) -> None:
        super().__init__(bits)
        self.lower = nn.Parameter(torch.tensor([-start]))
        self.upper = nn.Parameter(torch.tensor([start]))
        self.register_buffer("initialised", torch.tensor(percentile is None))
        self.percentile = percentile
        self.grid_kind: GridKind = grid
        self.gradient: Gradient = gradient
        self.kernel: Kernel = "eager"
        self.watch: Callable[[BoundsQuantizer, Tensor, tuple[Tensor, Tensor]], None] | None = None
        self._seen: tuple[Tensor, int, bool] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Float32 values of any shape, rounded; the first training batch sets the bounds."""
        bounds = self.bounds_for(values)
        if bounds is None:
            return values
        if self.watch is not None:
            self.watch(self, values, bounds)
        return self.round(values, *bounds)

    def bounds_for(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """The lower and the upper bound for these values, [1] or [N,1,1,1]; None to leave them as they are."""
        if self.training and not self.is_initialised():
            self.set_from(values)
        return self.lower, self.upper

    def is_initialised(self) -> bool:
        """`initialised`, read from its device only when it changed: a read makes the processor wait."""
        flag = self.initialised
        if self._seen is None or self._seen[0] is not flag or self._seen[1] != flag._version:
            self._seen = flag, flag._version, bool(flag)
        return self._seen[2]

    def looks(self) -> bool:
        """Whether `bounds_for` looks at the values."""
        return self.training and not self.is_initialised()

    def round(self, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Values rounded between the given bounds, with this quantiser's bits, grid and gradient."""
        return fake_quantize_between(
            values, lower, upper, self.bits, grid=self.grid_kind, gradient=self.gradient, kernel=self.kernel
        )

    @torch.no_grad()
    def set_from(self, values: Tensor) -> None:
        """Bounds from the signed percentiles of a tensor (DDTB's M and 100 - M, linear interpolation)."""
        assert self.percentile is not None
        lower, upper = percentiles(values, self.percentile)
        self.lower.copy_(lower)
        self.upper.copy_(upper)
        self.initialised.fill_(True)

    def step(self) -> Tensor:
        """The scale of the deployed grid, float32 [1]."""
        return integer_grid(self.lower, self.upper, self.bits)[0]

    def deployed_grid(self) -> Grid:
        """The integer grid of the trained bounds.

        Raises:
            UserError: they were trained on the official grid, which no integers compute.
        """
        if self.grid_kind != "integer":
            raise UserError("trained on the official grid, which is not deployed; train with method.grid = 'integer'")
        scale, zero_point = integer_grid(self.lower, self.upper, self.bits)
        return Grid(float(scale), int(zero_point), 2**self.bits - 1)


def percentiles(values: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The percentiles 100 - M and M of all values, float32 [1] each, interpolated linearly as NumPy does.

    Stays on the tensor's device and sorts nothing but, on other devices than the CPU, the two tails.
    """
    flat = values.detach().flatten().float()
    place = (100 - percentile) / 100 * (flat.numel() - 1)
    whole = min(int(place), flat.numel() - 1)
    further = min(whole + 1, flat.numel() - 1)
    if flat.device.type == "cpu":
        low, high = _lowest(flat.numpy(), whole), [-value for value in _lowest(-flat.numpy(), whole)]
        ends = flat.new_tensor([[low[0], low[further - whole]], [high[0], high[further - whole]]])
    else:
        tails = [torch.topk(flat, further + 1, largest=largest).values for largest in (False, True)]
        ends = torch.stack([torch.stack([tail[whole], tail[further]]) for tail in tails])
    lower, upper = torch.lerp(ends[:, 0], ends[:, 1], place - whole)
    return lower.reshape(1), upper.reshape(1)


def _lowest(values: NDArray[np.float32], rank: int) -> list[float]:
    """The values of a rank and of the next one in ascending order."""
    parted = np.partition(values, rank)
    return [float(parted[rank]), float(parted[rank + 1 :].min(initial=np.inf))]
