from __future__ import annotations

import math

import pytest
import torch
from objectives import batch, float_network, objective, total

from srquant.methods.lsq import StepQuantizer, StepWeights, round_to_steps
from srquant.quantizers.grid import fake_quantize


def test_rounding_and_its_gradients():
    values = torch.tensor([-9.0, -1.3, 0.2, 0.9, 1.7, 9.0], requires_grad=True)
    step = torch.tensor([0.5], requires_grad=True)
    out = round_to_steps(values, step, -2, 3)
    assert out.tolist() == [-1.0, -1.0, 0.0, 1.0, 1.5, 1.5]
    upstream = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    out.backward(upstream)
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0, 4, 8, 0, 0]
    by_step = torch.tensor([-2, -2, 0 - 0.4, 2 - 1.8, 3, 3])
    assert step.grad is not None
    torch.testing.assert_close(step.grad, (by_step * upstream).sum().reshape(1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_first_batch_sets_step_and_sign(bits: int):
    signed, rectified = StepQuantizer(bits), StepQuantizer(bits)
    values = torch.randn(4, 3, 8, 8)
    signed(values)
    rectified(values.relu())
    assert int(signed.zero_point) == 2 ** (bits - 1)
    assert int(rectified.zero_point) == 0
    top = 2 ** (bits - 1) - 1
    assert float(signed.size.detach()) == pytest.approx(2 * float(values.abs().mean()) / math.sqrt(top))
    assert float(rectified.size.detach()) == pytest.approx(2 * float(values.relu().mean()) / math.sqrt(2**bits - 1))
    step = float(signed.size.detach())
    signed(10 * values)
    assert float(signed.size.detach()) == step


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_deployed_grid_rounds_alike(bits: int):
    quantizer = StepQuantizer(bits)
    values = 3 * torch.randn(2, 3, 8, 8)
    quantizer(values)
    rounded = quantizer.eval()(values).detach()
    assert len(rounded.unique()) <= 2**bits
    torch.testing.assert_close(fake_quantize(values, quantizer.deployed_grid()), rounded)
    assert float(quantizer.step()) == pytest.approx(quantizer.deployed_grid().scale)


def test_the_gradient_of_a_step_is_scaled():
    quantizer = StepQuantizer(4)
    values = torch.randn(2, 3, 8, 8)
    quantizer(values)
    quantizer(values).sum().backward()
    plain = quantizer.size.detach().clone().requires_grad_()
    round_to_steps(values, plain, -8, 7).sum().backward()
    assert quantizer.size.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(quantizer.size.grad, plain.grad / math.sqrt(3 * 8 * 8 * 7))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_what_their_codes_say(bits: int):
    weight = torch.randn(5, 3, 3, 3)
    quantizer = StepWeights(bits, weight)
    rounded, step = quantizer(weight)
    codes = quantizer.codes(weight)
    assert codes.multiples.min() >= -(2 ** (bits - 1))
    assert codes.multiples.max() <= 2 ** (bits - 1) - 1
    torch.testing.assert_close(codes.multiples.float() * codes.steps.view(-1, 1, 1, 1), rounded.detach())
    assert codes.multiples.int().abs().max() * codes.expansion <= 128
    torch.testing.assert_close(step, codes.steps[:1] / codes.expansion)


def test_a_step_that_falls_to_zero_does_no_harm():
    quantizer = StepQuantizer(2)
    values = torch.randn(1, 2, 4, 4)
    quantizer(values)
    with torch.no_grad():
        quantizer.size.zero_()
    out = quantizer(values)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert quantizer.size.grad is not None
    assert torch.isfinite(quantizer.size.grad).all()


def test_steps_of_activations_and_weights_learn():
    made = objective("lsq", float_network("edsr"))
    optimizer = torch.optim.Adam(made.parameter_groups())
    made.start_epoch(1)
    made(*batch())
    before = {name: p.detach().clone() for name, p in made.named_parameters() if name.endswith("size")}
    assert len(before) > 8
    total(made(*batch(1))).backward()
    optimizer.step()
    after = dict(made.named_parameters())
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
