from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from regularised import (
    brute_force,
)
from torch import Tensor

from srquant.methods import cooperation
from srquant.methods.cooperation import Gate, Granularity, combined


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
