from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from objectives import batch, float_network, objective, total
from torch import Tensor, nn
from torch.nn import functional

from srquant.errors import UserError
from srquant.methods import cooperation
from srquant.methods.cooperation import Gate, Granularity, Pull, combined
from srquant.methods.odm import ODM
from srquant.quantizers.acceleration import use_kernel
from srquant.quantizers.bounds import BoundsQuantizer

NETWORKS = ["edsr", "rdn", "srresnet"]


def plain_std(values: Tensor) -> Tensor:
    return values.std(-1, unbiased=False)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "variance": lambda x: plain_std(x.flatten(1)).mean(),
    "channel_means": lambda x: plain_std(x.mean((2, 3))).mean(),
    "channel_stds": lambda x: plain_std(plain_std(x.flatten(2))).mean(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_regularisers_have_the_gradient_of_their_formula(name: Any):
    values = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = FORMULAS[name](values)
    expected.backward()
    value, gradient = cooperation.REGULARISERS[name](values.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, values.grad)


def test_the_mismatch_has_the_gradient_of_its_formula():
    values = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    rounded = torch.round(values.detach())
    expected = torch.linalg.vector_norm(values - rounded)
    expected.backward()
    value, gradient = cooperation.mismatch(values.detach(), rounded)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, values.grad)


@pytest.mark.parametrize("name", FORMULAS)
def test_regularisers_of_a_constant_are_zero(name: Any):
    value, gradient = cooperation.REGULARISERS[name](torch.full((2, 3, 4, 4), 7.0))
    assert float(value) == 0
    assert not gradient.any()
    assert not cooperation.mismatch(torch.ones(2, 2), torch.ones(2, 2))[1].any()


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


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("gate", get_args(Gate))
def test_gradients_are_combined_by_the_rule(gate: Gate, granularity: Granularity):
    torch.manual_seed(1)
    g = [torch.randn(3, 2), torch.randn(5), torch.randn(2, 2)]
    r = [torch.randn(3, 2), g[1] + 0.3 * torch.randn(5), -g[2]]
    g[0][0, 0] = 0
    found = combined([*g, torch.ones(2), None], [*r, None, None], gate, granularity)
    for one, other in zip(found, brute_force(g, r, gate, granularity), strict=False):
        assert one is not None
        torch.testing.assert_close(one, other)
    assert found[3] is not None
    assert torch.equal(found[3], torch.ones(2))
    assert found[4] is None


def test_a_parameter_that_the_loss_does_not_reach_agrees_by_half():
    (found,) = combined([None], [torch.ones(2)], "cosine", "tensor")
    assert found is not None
    assert found.tolist() == [0.5, 0.5]


# --- two passes ---------------------------------------------------------------------------------------------------


def odm(name: str, bits: int = 2, placement: str = "strict", **options: Any) -> ODM:
    """After its bounds are set, with a weight that makes the regulariser strong."""
    options = {"regulariser_weight": 0.05, **options}
    made = objective("odm", float_network(name), options, bits=bits, placement=placement, teacher=False)
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
    for quantizer in made._layer_inputs():
        quantizer.watch = keep
    parts = made(*batch(1))
    for quantizer in made._layer_inputs():
        quantizer.watch = None
    made.config = kept
    return parts["l1"], inputs, rounded


def close(found: dict[str, Tensor], expected: dict[str, Tensor], names: set[str] | None = None) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    for name in names or expected:
        assert float((found[name] - expected[name]).abs().max()) <= 1e-5 * scale, name


def trained_parameters(made: ODM) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}


def two_passes(made: ODM, gate: Gate, granularity: Granularity) -> dict[str, Tensor]:
    """The formula for weights and their like, the gradient of the loss for ranges and clips."""
    loss, inputs, rounded = captured(made)
    norms = [torch.linalg.vector_norm(x - q) for x, q in zip(inputs, rounded, strict=True)]
    penalty = made.config.regulariser_weight * torch.stack(norms).sum()
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


def may_be_shut(gate: Gate, granularity: Granularity) -> bool:
    """Whether the gate can take everything away."""
    return gate == "sign" and granularity != "element"


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("gate", get_args(Gate))
@pytest.mark.parametrize("name", NETWORKS)
def test_two_passes_are_the_formula(name: str, gate: Any, granularity: Any):
    made = odm(name, gate=gate, granularity=granularity)
    found = gradients(made)
    close(found, two_passes(made, gate, granularity))
    assert may_be_shut(gate, granularity) or largest_difference(found, gradients(odm(name, gate="off"))) > 1e-4


# --- one pass -----------------------------------------------------------------------------------------------------


def layer_by_layer(made: ODM, gate: Gate, granularity: Granularity) -> dict[str, Tensor]:
    """One more backward pass for every layer, from the last to the first."""
    loss, inputs, rounded = captured(made)
    outputs, sent = [loss], [torch.ones_like(loss)]
    weight = made.config.regulariser_weight
    for values, q in reversed(list(zip(inputs, rounded, strict=True))):
        (g,) = torch.autograd.grad(outputs, values, sent, retain_graph=True)
        r = weight * (values.detach() - q) / torch.linalg.vector_norm(values.detach() - q)
        (both,) = combined([g], [r], gate, granularity)
        assert both is not None
        outputs.append(values)
        sent.append(both - g)
    names, parameters = zip(*trained_parameters(made).items(), strict=True)
    found = torch.autograd.grad(outputs, parameters, sent, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("granularity", ["element", "tensor"])
@pytest.mark.parametrize("gate", get_args(Gate))
@pytest.mark.parametrize("placement", ["strict", "ddtb"])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_pass_is_a_pass_for_every_layer(name: str, placement: str, gate: Any, granularity: Any):
    made = odm(name, placement=placement, gate=gate, granularity=granularity, cooperation="features")
    found = gradients(made)
    close(found, layer_by_layer(made, gate, granularity))
    plain = gradients(odm(name, placement=placement, gate="off"))
    assert may_be_shut(gate, granularity) or largest_difference(found, plain) > 1e-4


@pytest.mark.parametrize("granularity", ["element", "tensor"])
@pytest.mark.parametrize("gate", get_args(Gate))
@pytest.mark.parametrize("kernel", ["compiled", "fused", "integer"])
@pytest.mark.parametrize("cooperates", ["features", "parameters"])
def test_every_kernel_does_the_same(kernel: Any, gate: Any, granularity: Any, cooperates: str):
    made = odm("edsr", bits=4, gate=gate, granularity=granularity, cooperation=cooperates)
    use_kernel(made.network, kernel)
    reference = layer_by_layer if cooperates == "features" else two_passes
    close(gradients(made), reference(made, gate, granularity))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_gate_one_pass_and_two_are_the_same_for_what_is_regularised(name: str):
    two, one = odm(name, gate="none"), odm(name, gate="none", cooperation="features")
    found = gradients(one)
    regularised = {n for n in found if not n.endswith(("lower", "upper", "gamma"))}
    close(found, gradients(two), regularised)
    untouched = gradients(odm(name, gate="off"))
    close(gradients(two), untouched, set(found) - regularised)


@pytest.mark.parametrize(("gate", "granularity", "share"), [("sign", "element", 0.0), ("cosine", "element", 0.5)])
def test_an_element_wise_gate_does_not_see_clipped_elements_that_only_a_quantiser_reads(
    gate: Any, granularity: Any, share: float
):
    values = torch.linspace(-4, 4, 64).view(1, 1, 8, 8).requires_grad_()
    quantizer = BoundsQuantizer(2, percentile=None, start=2.0)
    weight = torch.tensor(0.5)
    quantizer.watch = cooperation.Watch("mismatch", True, Pull(gate, granularity, weight))
    (quantizer(values) ** 2).sum().backward()
    clipped = values.detach().abs() > 2
    quantizer.watch = None
    error = values.detach() - quantizer(values.detach())
    assert clipped.sum() > 20
    assert values.grad is not None
    wanted = share * weight * error / torch.linalg.vector_norm(error)
    torch.testing.assert_close(values.grad[clipped], wanted.detach()[clipped])
    assert error[clipped].square().sum() > 0.9 * error.square().sum()  # the mismatch is there


def test_one_share_for_the_tensor_reaches_clipped_elements():
    values = torch.linspace(-4, 4, 64).view(1, 1, 8, 8).requires_grad_()
    quantizer = BoundsQuantizer(2, percentile=None, start=2.0)
    error = (values - quantizer(values)).detach()
    quantizer.watch = cooperation.Watch("mismatch", True, Pull("sign", "tensor", torch.tensor(0.5)))
    (quantizer(values) * error).sum().backward()
    clipped = values.detach().abs() > 2
    assert values.grad is not None
    assert (values.grad[clipped] != 0).all()


@pytest.mark.parametrize("cooperates", ["features", "parameters"])
def test_straight_through_moves_nothing_but_clipped_elements(cooperates: str):
    watch = cooperation.Watch("mismatch", False, None)
    if cooperates == "features":
        watch.pull = Pull("none", "element", torch.tensor(1.0))
    values = torch.linspace(-4, 4, 64).view(1, 1, 8, 8).requires_grad_()
    quantizer = BoundsQuantizer(2, percentile=None, start=2.0)
    quantizer.watch = watch
    out = quantizer(values)
    quantizer.watch = None
    loss = 0 * out.sum() if cooperates == "features" else watch.terms[0]
    loss.backward()
    error = values.detach() - quantizer(values.detach())
    wanted = error / torch.linalg.vector_norm(error) * (values.detach().abs() > 2)
    torch.testing.assert_close(values.grad, wanted.detach())


# --- its weight ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cooperates", ["features", "parameters"])
@pytest.mark.parametrize("regulariser", ["mismatch", "variance", "channel_means", "channel_stds"])
def test_the_weight_gives_the_regulariser_its_share(regulariser: str, cooperates: str):
    made = odm("edsr", regulariser=regulariser, regulariser_share=0.05, cooperation=cooperates, gate="none")
    weight = float(made.regulariser_weight)
    low, high = batch(samples=2)
    names = made._regularised_parameters()
    plain = odm("edsr", gate="off")(low, high)["l1"]
    made.config = made.config.model_copy(update={"cooperation": "parameters"})
    parts = made(low, high)
    sizes = []
    for part in (parts["l1"], parts["regulariser"]):
        found = torch.autograd.grad(part, names, retain_graph=True, allow_unused=True)
        sizes.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in found if g is not None])))
    torch.testing.assert_close(sizes[1] / sizes[0], torch.tensor(0.05))
    torch.testing.assert_close(parts["l1"], plain)
    assert float(made.regulariser_weight) == weight


def test_the_regulariser_is_told_but_not_added_in_one_pass():
    made = odm("edsr", cooperation="features")
    parts = made(*batch(1))
    assert not made.apart
    assert not parts["regulariser"].requires_grad
    _, inputs, rounded = captured(made)
    expected = sum(float(torch.linalg.vector_norm(x - q).detach()) for x, q in zip(inputs, rounded, strict=True))
    assert float(parts["regulariser"]) == pytest.approx(0.05 * expected, rel=1e-4)
    total(parts).backward()


def test_nothing_stays_behind():
    made = odm("edsr", cooperation="features")
    total(made(*batch(1))).backward()
    assert all(q.watch is None for q in made._layer_inputs())


def test_one_cosine_for_all_parameters_needs_their_gradients():
    with pytest.raises(UserError, match=r"granularity = 'global' needs method.cooperation = 'parameters'"):
        odm("edsr", cooperation="features", granularity="global")
