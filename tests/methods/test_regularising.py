from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from objectives import batch, float_network, total
from regularised import (
    NETWORKS,
    begun,
    captured,
    close,
    gradients,
    largest_difference,
    layer_by_layer,
    odm,
    trained_parameters,
    two_passes,
)

from srquant.errors import UserError
from srquant.methods.cooperation import Gate, Granularity, Pull
from srquant.methods.regularising import Watch, layer_inputs
from srquant.networks import EDSR, EDSRConfig, SRNetwork
from srquant.quantizers.acceleration import use_kernel
from srquant.quantizers.bounds import BoundsQuantizer

# --- two passes ---------------------------------------------------------------------------------------------------


def may_be_shut(gate: Gate, granularity: Granularity) -> bool:
    """Whether the gate can take everything away."""
    return gate == "sign" and granularity != "element"


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("gate", get_args(Gate))
@pytest.mark.parametrize("name", NETWORKS)
def test_two_passes_are_the_formula(name: str, gate: Any, granularity: Any):
    made = odm(name, gate=gate, granularity=granularity)
    found = gradients(made)
    close(found, two_passes(made, gate, granularity))
    assert may_be_shut(gate, granularity) or largest_difference(found, gradients(odm(name, gate="off"))) > 1e-4


# --- one pass -----------------------------------------------------------------------------------------------------


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
    quantizer.watch = Watch("mismatch", True, Pull(gate, granularity, weight))
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
    quantizer.watch = Watch("mismatch", True, Pull("sign", "tensor", torch.tensor(0.5)))
    (quantizer(values) * error).sum().backward()
    clipped = values.detach().abs() > 2
    assert values.grad is not None
    assert (values.grad[clipped] != 0).all()


@pytest.mark.parametrize("cooperates", ["features", "parameters"])
def test_straight_through_moves_nothing_but_clipped_elements(cooperates: str):
    watch = Watch("mismatch", False, None)
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


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
@pytest.mark.parametrize("cooperates", ["features", "parameters"])
@pytest.mark.parametrize("name", ["edsr", "srresnet"])
def test_a_picture_that_is_rounded_has_a_regulariser_but_no_gradient(name: str, cooperates: str, kernel: Any):
    made = begun(float_network(name), placement="full", rest="float", cooperation=cooperates)
    use_kernel(made.network, kernel)
    loss, inputs, rounded = captured(made)
    assert [x.requires_grad for x in inputs] == [False] + [True] * (len(inputs) - 1)
    norms = [torch.linalg.vector_norm(x.detach() - q) for x, q in zip(inputs, rounded, strict=True)]
    assert norms[0] > 0
    parts = made(*batch(1))
    torch.testing.assert_close(parts["l1"], loss)
    torch.testing.assert_close(parts["regulariser"].detach(), made.regulariser_weight * torch.stack(norms).sum())
    reference = layer_by_layer if cooperates == "features" else two_passes
    close(gradients(made), reference(made, "cosine", "tensor"))


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


def brighter(network: SRNetwork) -> SRNetwork:
    """The same function of pictures as an EDSR in 0..1, in 0..255: features are 255 times as large."""
    config = network.config
    assert isinstance(config, EDSRConfig)
    assert config.peak == 1
    red, green, blue = (255 * part for part in config.mean)
    other = EDSR(replace(config, peak=255.0, mean=(red, green, blue)))
    state = network.state_dict()
    other.load_state_dict({key: 255 * v if key.endswith("bias") else v for key, v in state.items()}, strict=False)
    return other


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "cosine"},
        {"gate": "cosine", "cooperation": "features"},
        {"gate": "sign", "granularity": "element", "regulariser": "variance"},
    ],
    ids=["two passes", "one pass", "version 1"],
)
def test_the_range_of_values_changes_no_gradient_of_weights(options: dict[str, Any]):
    dark = float_network("edsr")
    bright = brighter(dark)
    picture = batch()[0]
    torch.testing.assert_close(bright(picture), 255 * dark(picture / 255), rtol=1e-5, atol=1e-4)
    # with 8-bit grids around them, values on a tie would take other codes
    one, other = (begun(network, rest="float", regulariser_weight=2e-4, **options) for network in (dark, bright))
    found, expected = gradients(one), gradients(other)
    sizes = [
        {key: torch.linalg.vector_norm(p.detach()) for key, p in trained_parameters(m).items()} for m in (one, other)
    ]
    # a lower bound behind a ReLU is 0
    factors = {key: sizes[1][key] / size if (size := sizes[0][key]) > 0 else 255 for key in found}
    weights = {key for key in found if ".body." in key and key.endswith("weight")}
    assert len(weights) == 5
    assert all(float(factors[key]) == 1 for key in weights)
    assert any(float(factor) == pytest.approx(255) for factor in factors.values())
    close(found, {key: factors[key] * gradient for key, gradient in expected.items()})
    plain = gradients(begun(dark, rest="float", gate="off"))
    assert largest_difference({key: found[key] for key in weights}, plain) > 1e-3


def test_the_regulariser_is_told_but_not_added_in_one_pass():
    made = odm("edsr", cooperation="features")
    parts = made(*batch(1))
    assert not made.apart
    assert not parts["regulariser"].requires_grad
    _, inputs, rounded = captured(made)
    expected = sum(float(torch.linalg.vector_norm(x - q).detach()) for x, q in zip(inputs, rounded, strict=True))
    assert float(parts["regulariser"]) == pytest.approx(float(made.regulariser_weight) * expected, rel=1e-4)
    total(parts).backward()


def test_nothing_stays_behind():
    made = odm("edsr", cooperation="features")
    total(made(*batch(1))).backward()
    assert all(q.watch is None for q in layer_inputs(made.network))


def test_one_cosine_for_all_parameters_needs_their_gradients():
    with pytest.raises(UserError, match=r"granularity = 'global' needs method.cooperation = 'parameters'"):
        odm("edsr", cooperation="features", granularity="global")
