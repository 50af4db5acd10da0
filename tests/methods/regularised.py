"""ODM objectives, their gradients as the loop makes them, and the same from the formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
from objectives import batch, float_network, objective
from torch import Tensor, nn
from torch.nn import functional

from srquant.methods.cooperation import Gate, Granularity, combined
from srquant.methods.odm import ODM
from srquant.methods.regularising import layer_inputs
from srquant.networks import SRNetwork
from srquant.quantizers.bounds import BoundsQuantizer

NETWORKS = ["edsr", "rdn", "srresnet"]


def brute_force(g: list[Tensor], r: list[Tensor], gate: Gate, granularity: Granularity) -> list[Tensor]:
    """The rule, element by element, from its words."""
    flat_g, flat_r = torch.cat([p.flatten() for p in g]), torch.cat([p.flatten() for p in r])
    result = []
    for one, other in zip(g, r, strict=True):
        whole = (flat_g, flat_r) if granularity == "global" else (one.flatten(), other.flatten())
        cosine = float(functional.cosine_similarity(*whole, dim=0))
        out = torch.empty(one.shape)
        for place in range(one.numel()):
            a, b = float(one.flatten()[place]), float(other.flatten()[place])
            c = math.copysign(1.0, a * b) * (a * b != 0) if granularity == "element" else cosine
            counts = {"cosine": (c + 1) / 2, "sign": float(c > 0), "none": 1.0}[gate]
            out.view(-1)[place] = a + counts * b
        result.append(out)
    return result


def odm(name: str, bits: int = 2, placement: str = "strict", **options: Any) -> ODM:
    """After its bounds are set, with a weight that makes the regulariser strong."""
    return begun(float_network(name), bits, placement, **options)


def begun(network: SRNetwork, bits: int = 2, placement: str = "strict", rest: str = "int8", **options: Any) -> ODM:
    options = {"regulariser_weight": 0.05 * network.info.peak / 255, **options}
    made = objective("odm", network, options, bits=bits, placement=placement, rest=rest, teacher=False)
    assert isinstance(made, ODM)
    made.start_epoch(1)
    made(*batch(samples=2))
    made.start_epoch(2)
    made(*batch(samples=2))  # the 8-bit bounds
    return made


def gradients(made: ODM) -> dict[str, Tensor]:
    """As the loop makes them, by name of the parameter."""
    parts = made(*batch(1))
    names, parameters = zip(*trained_parameters(made).items(), strict=True)
    losses = [parts[name] for name in parts if name not in made.apart]
    first = torch.autograd.grad(sum(losses), parameters, retain_graph=True, allow_unused=True)  # pyright: ignore
    if made.apart:
        second = torch.autograd.grad(parts["regulariser"], parameters, allow_unused=True)
        first = made.combine(parameters, first, second)
    return {name: g for name, g in zip(names, first, strict=True) if g is not None}


def captured(made: ODM) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The reconstruction loss, every layer input with its graph, and what it is rounded to; in order."""
    inputs: list[Tensor] = []
    rounded: list[Tensor] = []

    def keep(quantizer: BoundsQuantizer, values: Tensor, bounds: tuple[Tensor, Tensor]) -> None:
        inputs.append(values)
        with torch.no_grad():
            rounded.append(quantizer.round(values.detach(), *bounds))

    off = made.config.model_copy(update={"gate": "off"})
    made.config, kept = off, made.config
    for quantizer in layer_inputs(made.network):
        quantizer.watch = keep
    parts = made(*batch(1))
    for quantizer in layer_inputs(made.network):
        quantizer.watch = None
    made.config = kept
    return parts["l1"], inputs, rounded


def close(found: dict[str, Tensor], expected: dict[str, Tensor], names: set[str] | None = None) -> None:
    assert found.keys() == expected.keys()
    noise = 1e-9 * max(float(g.abs().max()) for g in expected.values())
    for name in names or expected:
        largest, off = (float(g.abs().max()) for g in (expected[name], found[name] - expected[name]))
        assert off <= 1e-4 * largest + noise, name
        assert largest == 0 or largest > 2 * noise, f"{name} could be zero as well"


def trained_parameters(made: ODM) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}


def two_passes(made: ODM, gate: Gate, granularity: Granularity) -> dict[str, Tensor]:
    """The formula for weights and their like, the gradient of the loss for ranges and clips."""
    loss, inputs, rounded = captured(made)
    norms = [torch.linalg.vector_norm(x - q) for x, q in zip(inputs, rounded, strict=True)]
    penalty = made.regulariser_weight * torch.stack(norms).sum()
    names, parameters = zip(*trained_parameters(made).items(), strict=True)
    g = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    r = torch.autograd.grad(penalty, parameters, allow_unused=True)
    result = {name: one for name, one in zip(names, g, strict=True) if one is not None}
    both = {
        name: (one, other)
        for name, one, other in zip(names, g, r, strict=True)
        if one is not None and other is not None and not name.endswith(("lower", "upper", "gamma"))
    }
    assert len(both) > 4
    ones, others = ([pair[i] for pair in both.values()] for i in range(2))
    return result | dict(zip(both, brute_force(ones, others, gate, granularity), strict=True))


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def layer_by_layer(made: ODM, gate: Gate, granularity: Granularity) -> dict[str, Tensor]:
    """One more backward pass for every layer, from the last to the first."""
    loss, inputs, rounded = captured(made)
    outputs, sent = [loss], [torch.ones_like(loss)]
    weight = made.regulariser_weight
    for values, q in reversed(list(zip(inputs, rounded, strict=True))):
        if not values.requires_grad:
            continue
        (g,) = torch.autograd.grad(outputs, values, sent, retain_graph=True)
        r = weight * (values.detach() - q) / torch.linalg.vector_norm(values.detach() - q)
        (both,) = combined([g], [r], gate, granularity)
        assert both is not None
        outputs.append(values)
        sent.append(both - g)
    names, parameters = zip(*trained_parameters(made).items(), strict=True)
    found = torch.autograd.grad(outputs, parameters, sent, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}
