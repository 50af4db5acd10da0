"""How much rounding disturbs the output, as a function of one factor per channel, and the factors that disturb least.

Rounding a tensor to steps of size d adds noise of variance d^2/12 to each value; to first order it reaches the output
times the gradient. With channel c divided by f_c the step is `(max_c upper_c/f_c - min_c lower_c/f_c) / 255` and the
noise `d^2/12 * sum_c f_c^2 g_c`, g_c being the channel's summed squared gradient. A weight that reads channel c is
multiplied by f_c: its step follows the largest weight of its output channel, and its noise reaches the output
through the channel's energy. The sum of all this over all tensors and convolutions is smooth but for the maxima, and
is minimised over the logarithms of the factors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

_PROJECTIONS = 2
"""Random projections of the output per crop, whose gradients are measured."""

_STEPS = 250
_RATE = 0.05
_SHARPNESS = 16.0
"""Of the smooth maximum: the norm of this order."""

_LEFT = 0.1
"""Share of the noise of weights that is left after they were rounded so that their errors cancel."""

_SMALLEST = 1e-12


@dataclass
class Statistics:
    """What the crops show of one tensor, [C] each.

    Attributes:
        lower: smallest value of each channel, at most 0.
        upper: largest value, at least 0.
        energy: mean square.
        gradient: squared gradient of random projections of the output, summed over the tensor.
    """

    lower: Tensor
    upper: Tensor
    energy: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Statistics:
        """Of float32 [1,C,H,W]; the gradient is still 0."""
        lower, upper = values.amin((0, 2, 3)).clamp(max=0), values.amax((0, 2, 3)).clamp(min=0)
        return cls(lower, upper, values.square().mean((0, 2, 3)), torch.zeros_like(lower))

    def see(self, more: Statistics) -> None:
        """Take in another crop's."""
        self.lower, self.upper = torch.minimum(self.lower, more.lower), torch.maximum(self.upper, more.upper)
        self.energy = self.energy + more.energy


def measure(graph_module: fx.GraphModule, crops: Iterable[Tensor]) -> dict[fx.Node, Statistics]:
    """The statistics of every tensor that a layer, a sum, a product or a concatenation makes.

    Args:
        graph_module: a folded network.
        crops: yields [1, C, H, W], pixel values 0..255 of any type; their float32 form is in memory one at a time.
    """
    found: dict[fx.Node, Statistics] = {}
    random = torch.Generator().manual_seed(0)

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor) and (n.op == "call_module" or n.target in _MAKING):
                here = Statistics.of(result.detach())
                if n in found:
                    found[n].see(here)
                else:
                    found[n] = here
                if result.requires_grad:
                    result.register_hook(lambda gradient: note(found[n], gradient))
            return result

    def note(statistics: Statistics, gradient: Tensor) -> None:
        statistics.gradient = statistics.gradient + gradient.double().square().sum((0, 2, 3)).float()

    count = 0
    trained = [parameter for parameter in graph_module.parameters() if parameter.requires_grad]
    graph_module.requires_grad_(False)
    with torch.enable_grad():
        for crop in crops:
            count += 1
            output = Watcher(graph_module).run(crop.detach().float().clone().requires_grad_())
            for left in reversed(range(_PROJECTIONS)):
                projected = (output * torch.randn(output.shape, generator=random)).sum()
                projected.backward(retain_graph=left > 0)
    for parameter in trained:
        parameter.requires_grad_()
    for statistics in found.values():
        statistics.energy = statistics.energy / count
    return found


_MAKING = (operator.add, operator.mul, torch.cat)


@dataclass(frozen=True)
class RoundedTensor:
    """A tensor that is rounded, and the index of the factor of each of its channels, [C]."""

    channels: Tensor
    statistics: Statistics

    def noise(self, factors: Tensor) -> Tensor:
        """What its rounding adds to the output's squared error, up to a constant of all terms; []."""
        own = factors[self.channels]
        width = _largest(self.statistics.upper / own) + _largest(-self.statistics.lower / own)
        return (width / 255).square() * (self.statistics.gradient * own.square()).sum()


@dataclass(frozen=True)
class RoundedWeights:
    """The weights of a convolution, whose rows are rounded one by one.

    Attributes:
        magnitudes: largest weight from each input to each output channel, [O, I/groups].
        taps: weights per pair of channels.
        inputs: for each weight the index of the factor of the channel it reads, [O, I/groups].
        energy: of that channel, [O, I/groups].
        gradient: of the output channels, [O].
    """

    magnitudes: Tensor
    taps: int
    inputs: Tensor
    energy: Tensor
    gradient: Tensor

    def noise(self, factors: Tensor) -> Tensor:
        """As `RoundedTensor.noise`."""
        own = factors[self.inputs]
        steps = _largest(self.magnitudes * own) / 127
        return _LEFT * self.taps * (steps.square() * self.gradient * (self.energy / own.square()).sum(1)).sum()


def quietest_factors(terms: list[RoundedTensor | RoundedWeights], count: int, pinned: Tensor, largest: float) -> Tensor:
    """The factors that make the sum of all noises smallest.

    Args:
        terms: what is rounded.
        count: how many factors there are.
        pinned: bool [count], factors that stay 1.
        largest: no factor is larger, none smaller than its inverse.

    Returns:
        float32 [count]; ones where the noise is not finite.
    """
    logarithms = torch.zeros(count, requires_grad=True)
    limit = math.log(largest)

    def factors() -> Tensor:
        return torch.exp(torch.where(pinned, 0.0, logarithms.clamp(-limit, limit)))

    total: Callable[[], Tensor] = lambda: torch.stack([term.noise(factors()) for term in terms]).sum()  # noqa: E731
    optimizer = torch.optim.Adam([logarithms], lr=_RATE)
    with torch.enable_grad():
        for _ in range(_STEPS if terms else 0):
            loss = total().log()
            if not bool(torch.isfinite(loss)):
                return torch.ones(count)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return factors().detach()


def _largest(values: Tensor) -> Tensor:
    """A smooth maximum over the last axis of values of at least 0."""
    return torch.exp(torch.logsumexp(_SHARPNESS * values.clamp(min=_SMALLEST).log(), -1) / _SHARPNESS)
