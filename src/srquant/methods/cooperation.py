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
  later layers included, and `share * r` is added. Under the gate "none" both are the same.

A trap of features: a clipped element that nobody but its quantiser reads has g = 0. The element-wise sign gate never
lets the term act there, where the mismatch is largest; the element-wise cosine gives it half, one share for each tensor
what the tensor has.

With several processes the norm of the mismatch and the products are those of the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from srquant.quantizers import compiled
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.kernels import Ranges, integer_ranges

Regulariser = Literal["mismatch", "variance", "channel_means", "channel_stds"]
Gate = Literal["cosine", "sign", "none"]
Granularity = Literal["element", "tensor", "global"]

_SMALLEST = 1e-20


# --- regularisers -------------------------------------------------------------------------------------------------


def mismatch(values: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """`||values - rounded||_2`, [], and its gradient by the values; both of one shape, float32."""
    difference = values - rounded
    norm = _joined_norm(difference.square().sum())
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


def gradient_norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
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


@dataclass(eq=False)
class Watch:
    """Takes the regulariser of whatever a quantiser is about to round; see `BoundsQuantizer.watch`.

    Attributes:
        kind: the regulariser.
        detached: whether rounded values are constants in the mismatch; otherwise they have the quantiser's gradient.
        pull: how the gradient is added when a backward pass comes by; None: `terms` are to be differentiated.
        terms: the regulariser of every tensor seen, [] each, unweighted.
    """

    kind: Regulariser
    detached: bool
    pull: Pull | None
    terms: list[Tensor] = field(default_factory=list)

    def __call__(self, quantizer: BoundsQuantizer, values: Tensor, bounds: tuple[Tensor, Tensor]) -> None:
        """Note the regulariser of values, [N,C,H,W]; with a `pull`, hook on the gradient that all readers send them."""
        lower, upper = (bound.detach() for bound in bounds)
        seen, pull = values.detach(), self.pull  # a hook that held the values themselves would keep them for ever
        if pull is not None and self._can_be_compiled(quantizer, lower):
            ranges = integer_ranges(seen, lower, upper, quantizer.bits)
            norm = _joined_norm(compiled.squared_mismatch(seen, ranges))
            self.terms.append(norm)
            values.register_hook(lambda grad: pull.add_mismatch(grad, seen, ranges, norm))
            return
        term, gradient = self._of(quantizer, seen, lower, upper)
        self.terms.append(_Term.apply(values, term, gradient) if pull is None else term)
        if pull is not None:
            values.register_hook(lambda grad: pull.add(grad, gradient))

    def _can_be_compiled(self, quantizer: BoundsQuantizer, lower: Tensor) -> bool:
        plain = self.kind == "mismatch" and self.detached and quantizer.plain
        return plain and quantizer.kernel == "compiled" and quantizer.grid_kind == "integer" and lower.numel() == 1

    @torch.no_grad()
    def _of(self, quantizer: BoundsQuantizer, values: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The regulariser of a tensor, [], and its gradient, both float32."""
        values = values.float()
        if self.kind != "mismatch":
            return REGULARISERS[self.kind](values)
        if self.detached:
            return mismatch(values, quantizer.round(values, lower, upper))
        with torch.enable_grad():
            leaf = values.clone().requires_grad_()
            rounded = quantizer.round(leaf, lower, upper)
            (passed,) = torch.autograd.grad(rounded.sum(), leaf)
        term, gradient = mismatch(values, rounded.detach())
        return term, gradient * (1 - passed)


class _Term(torch.autograd.Function):
    """A known value with a known gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, term: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = values.dtype
        return term.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (grads[0] * gradient).to(ctx.dtype), None, None


# --- several processes --------------------------------------------------------------------------------------------


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _joined_sum(values: Tensor) -> Tensor:
    """The sum over all processes; with one it is `values` itself."""
    if _processes() > 1:
        values = values.contiguous()
        distributed.all_reduce(values)
    return values


def _joined_norm(square: Tensor) -> Tensor:
    return _joined_sum(square).sqrt()
