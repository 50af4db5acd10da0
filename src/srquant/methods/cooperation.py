"""Cooperative regularisation (ODM, arXiv 2307.13337): a second gradient that counts only as far as the first agrees.

A regulariser V of a layer's input X [N,C,H,W], and its gradient in closed form:

    mismatch (version 2)   ||X - q(X)||_2 over the whole batch;  (X - q(X))/V, q(X) a constant
    variance (version 1)   the standard deviation over C, H, W of each sample, averaged over the batch
    channel_means          the standard deviation over C of the channels' means, likewise
    channel_stds           the standard deviation over C of the channels' standard deviations, likewise

With g the gradient of the loss and r that of the regulariser, weight included, what is used is `g + share * r`:

    gate "cosine" (version 2)   share = (cos(g, r) + 1)/2, cos = 0 where one of them is zero
    gate "sign" (version 1)     share = 1 if <g, r> > 0, else 0
    gate "none"                 share = 1

`granularity` says over what products are taken: a single element, where the cosine is a sign; a tensor; or, of
parameters, all of them. What the paper calls gradient is read in two ways:

- Of parameters (`combined`): two backward passes, g and r are those of each parameter.
- Of features (`Pull`): one backward pass. Where X is computed, g is what comes back to it, the accepted terms of
  later layers included, and `share * r` is added.

These are two rules, not two ways to compute one: parameters get the same from both only under the gate "none".

A trap of features: a clipped element that nobody but its quantiser reads has g = 0. The element-wise sign gate never
lets the term act there, where the mismatch is largest; the element-wise cosine gives it half, one share for each tensor
what the tensor has.

With several processes the norm of the mismatch and the products are those of the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from srquant.quantizers import compiled
from srquant.quantizers.kernels import SMALLEST_RANGE, Ranges

Regulariser = Literal["mismatch", "variance", "channel_means", "channel_stds"]
Gate = Literal["cosine", "sign", "none"]
Granularity = Literal["element", "tensor", "global"]

_SMALLEST = 1e-20


# --- regularisers -------------------------------------------------------------------------------------------------


def mismatch(values: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """`||values - rounded||_2`, [], and its gradient by the values; both of one shape, float32."""
    difference = values - rounded
    norm = joined_norm(difference.square().sum())
    return norm, difference.mul_(_processes() / norm.clamp(min=_SMALLEST))


def variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """The standard deviation of each sample, averaged, [], and its gradient by the values, [N,C,H,W]."""
    deviation, slope = _deviation(values.flatten(1))
    return deviation.mean(), (slope / len(values)).view_as(values)


def channel_means(values: Tensor) -> tuple[Tensor, Tensor]:
    """The deviation of each sample's channel means, averaged, [], and its gradient by the values, [N,C,H,W]."""
    deviation, slope = _deviation(values.mean((2, 3)))
    pixels = values.shape[2] * values.shape[3]
    return deviation.mean(), (slope / (len(values) * pixels))[..., None, None].expand_as(values)


def channel_stds(values: Tensor) -> tuple[Tensor, Tensor]:
    """The deviation of each sample's channel deviations, averaged, [], and its gradient by the values, [N,C,H,W]."""
    channels, by_value = _deviation(values.flatten(2))
    deviation, by_channel = _deviation(channels)
    return deviation.mean(), (by_value * (by_channel / len(values))[..., None]).view_as(values)


REGULARISERS: Mapping[Regulariser, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "variance": variance,
    "channel_means": channel_means,
    "channel_stds": channel_stds,
}
"""Those of the values alone."""


def _deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """The (population) standard deviation over the last dimension, and its gradient by the values."""
    centred = values - values.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1).sqrt()
    return deviation, centred / (deviation * values.shape[-1]).clamp(min=_SMALLEST)[..., None]


# --- gates --------------------------------------------------------------------------------------------------------


def combined(
    gradients: Sequence[Tensor | None], extra: Sequence[Tensor | None], gate: Gate, granularity: Granularity
) -> list[Tensor | None]:
    """`g + share * r` for each parameter.

    Args:
        gradients: g of each parameter; None counts as zero.
        extra: r of each parameter; None where it has none.
        gate: see the module.
        granularity: see the module; "global" takes the products over all parameters that have an r.
    """
    result = list(gradients)
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for place, (g, r) in enumerate(zip(gradients, extra, strict=True)):
        if r is not None:
            pairs[place] = torch.zeros_like(r) if g is None else g, r
    common = None
    if granularity == "global" and pairs:
        common = share(gate, torch.stack([_products(g, r) for g, r in pairs.values()]).sum(0))
    for place, (g, r) in pairs.items():
        result[place] = g + r * (_share(g, r, gate, granularity) if common is None else common)
    return result


def share(gate: Gate, products: Tensor) -> Tensor:
    """How much of r counts, [], from `<g, r>`, `<g, g>` and `<r, r>`, [3]."""
    inner, first, second = products.unbind()
    if gate == "sign":
        return (inner > 0).float()
    if gate == "none":
        return torch.ones_like(inner)
    cosine = inner / (first.sqrt() * second.sqrt()).clamp(min=_SMALLEST)
    return (cosine.clamp(-1, 1) + 1) / 2


def element_share(gate: Gate, grad: Tensor, extra: Tensor) -> Tensor:
    """How much of each element of r counts, of the shape of g and r."""
    agreement = grad * extra
    if gate == "sign":
        return (agreement > 0).to(extra.dtype)
    return agreement.sign_().add_(1).mul_(0.5) if gate == "cosine" else torch.ones_like(extra)


def weight_of_share(share: float, loss: Tensor, regulariser: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The weight, [], with which a regulariser's gradient is `share` times as long as the loss's; keeps the graphs."""
    first, second = (_gradient_norm(part, parameters) for part in (loss, regulariser))
    return share * first / second.clamp(min=SMALLEST_RANGE)


def _gradient_norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The length of the gradient of the joined batch, [], up to a factor; keeps the graph."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.linalg.vector_norm(_joined_sum(torch.cat([g.flatten().float() for g in found if g is not None])))


def _share(grad: Tensor, extra: Tensor, gate: Gate, granularity: Granularity) -> Tensor:
    return element_share(gate, grad, extra) if granularity == "element" else share(gate, _products(grad, extra))


def _products(grad: Tensor, extra: Tensor) -> Tensor:
    g, r = grad.float(), extra.float()
    return torch.stack([(g * r).sum(), g.square().sum(), r.square().sum()])


# --- at a layer's input -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pull:
    """How a regulariser's gradient is added where a tensor is computed.

    Attributes:
        gate: see the module.
        granularity: "element" or "tensor".
        weight: float32 [], of the regulariser.
    """

    gate: Gate
    granularity: Granularity
    weight: Tensor

    def add(self, grad: Tensor, extra: Tensor) -> Tensor:
        """`g + share * r`, in the type of g, from g and the unweighted r."""
        wide = grad.float()
        if self.granularity == "element":
            counts = element_share(self.gate, wide, extra)
        else:
            counts = share(self.gate, _joined_sum(_products(wide, extra)))
        return torch.addcmul(wide, extra, counts.mul_(self.weight)).to(grad.dtype)

    def add_mismatch(self, grad: Tensor, values: Tensor, ranges: Ranges, norm: Tensor) -> Tensor:
        """The same for the mismatch of values on one integer grid, computed anew by compiled kernels."""
        if self.granularity == "element":
            ends = {"cosine": (1.0, 0.5, 0.0), "sign": (1.0, 0.0, 0.0), "none": (1.0, 1.0, 1.0)}[self.gate]
            counts = torch.tensor(ends, device=grad.device)
        else:
            counts = share(self.gate, _joined_sum(compiled.mismatch_products(grad, values, ranges))).expand(3)
        factor = self.weight * _processes() / norm.clamp(min=_SMALLEST)
        return compiled.with_mismatch(grad, values, ranges, factor * counts)


# --- several processes --------------------------------------------------------------------------------------------


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _joined_sum(values: Tensor) -> Tensor:
    """The sum over all processes; with one it is `values` itself."""
    if _processes() > 1:
        values = values.contiguous()
        distributed.all_reduce(values)
    return values


def joined_norm(square: Tensor) -> Tensor:
    """The root of the sum over all processes, [], of squared lengths, []."""
    return _joined_sum(square).sqrt()
