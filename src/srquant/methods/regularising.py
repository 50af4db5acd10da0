"""Regularisers of what low-bit convolutions read, noted while a network runs; see `srquant.methods.cooperation`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from srquant.methods.base import MethodConfig
from srquant.methods.cooperation import REGULARISERS, Granularity, Pull, Regulariser, joined_norm, mismatch
from srquant.quantizers import compiled
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.kernels import integer_ranges
from srquant.quantizers.network import QuantizedNetwork


class CooperationConfig(MethodConfig):
    """Options of a method that regularises cooperatively."""

    regulariser: Regulariser = Field(default="mismatch", description="'mismatch' is version 2, 'variance' version 1")
    regulariser_weight: float = Field(
        default=1e-5, gt=0, allow_inf_nan=False, description="lambda, of features in 0..255; RDN 1e-6"
    )
    regulariser_share: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of the L1 gradient at the first step, in place of a weight",
    )
    mismatch_gradient: Literal["detached", "straight-through"] = Field(
        default="detached", description="whether the rounded values in the mismatch are constants"
    )
    gate: Literal["cosine", "sign", "none", "off"] = Field(
        default="cosine", description="of the regulariser's gradient; 'none' adds it as it is, 'off' leaves it out"
    )
    cooperation: Literal["parameters", "features"] = Field(
        default="parameters",
        description="whose gradients agree: of parameters, two backward passes, or of features, one; two rules",
    )
    granularity: Granularity = Field(
        default="tensor", description="of the gate: each element, each parameter (layer input), or all parameters"
    )


def layer_inputs(network: QuantizedNetwork) -> list[BoundsQuantizer]:
    """The low-bit quantisers of what low-bit convolutions read, each once."""
    sources = [layer.source for layer in network.convolutions().values() if layer.low_bit]
    return list(dict.fromkeys(q for q in sources if isinstance(q, BoundsQuantizer) and q.low_bit))


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

    @contextmanager
    def over(self, network: QuantizedNetwork) -> Iterator[list[Tensor]]:
        """Watch the layer inputs of a network inside the block; gives `terms`."""
        quantizers = layer_inputs(network)
        try:
            for quantizer in quantizers:
                quantizer.watch = self
            yield self.terms
        finally:
            for quantizer in quantizers:
                quantizer.watch = None

    def __call__(self, quantizer: BoundsQuantizer, values: Tensor, bounds: tuple[Tensor, Tensor]) -> None:
        """Note the regulariser of values, [N,C,H,W]; with a `pull`, hook on the gradient that all readers send them.

        Of values without a gradient, such as the picture, there is nothing to pull.
        """
        lower, upper = (bound.detach() for bound in bounds)
        seen = values.detach()  # a hook that held the values themselves would keep them for ever
        pull = self.pull if values.requires_grad else None
        if pull is not None and self._can_be_compiled(quantizer, lower):
            ranges = integer_ranges(seen, lower, upper, quantizer.bits)
            norm = joined_norm(compiled.squared_mismatch(seen, ranges))
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
