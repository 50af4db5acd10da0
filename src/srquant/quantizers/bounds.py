"""An activation quantiser with a trainable lower and upper bound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    """

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

    def forward(self, values: Tensor) -> Tensor:
        """Float32 values of any shape, rounded; the first training batch sets the bounds."""
        bounds = self.bounds_for(values)
        return values if bounds is None else self.round(values, *bounds)

    def bounds_for(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """The lower and the upper bound for these values, [1] or [N,1,1,1]; None to leave them as they are."""
        if self.training and not self.initialised:
            self.set_from(values)
        return self.lower, self.upper

    def looks(self) -> bool:
        """Whether `bounds_for` looks at the values."""
        return self.training and not self.initialised

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
        """The integer grid of the trained bounds."""
        scale, zero_point = integer_grid(self.lower, self.upper, self.bits)
        return Grid(float(scale), int(zero_point), 2**self.bits - 1)


def percentiles(values: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The percentiles 100 - M and M of all values, float32 [1] each, interpolated linearly as NumPy does.

    Stays on the tensor's device and sorts only the tails.
    """
    flat = values.detach().flatten().float()
    place = (100 - percentile) / 100 * (flat.numel() - 1)
    whole = min(int(place), flat.numel() - 1)
    count = min(whole + 2, flat.numel())
    fraction = place - whole
    low = torch.topk(flat, count, largest=False).values
    high = torch.topk(flat, count).values
    ends = min(whole + 1, count - 1)
    return (
        (low[whole] + (low[ends] - low[whole]) * fraction).reshape(1),
        (high[whole] + (high[ends] - high[whole]) * fraction).reshape(1),
    )
