from __future__ import annotations

import pytest
import torch
from objectives import batch, float_network, objective, total

from srquant.methods.minmax import MovingRangeQuantizer
from srquant.quantizers.grid import fake_quantize
from srquant.quantizers.weights import SymmetricWeights


def test_the_range_follows_the_batches():
    quantizer = MovingRangeQuantizer(4, momentum=0.25)
    quantizer(torch.tensor([[-1.0, 3.0]]))
    assert (float(quantizer.lower), float(quantizer.upper)) == (-1, 3)
    quantizer(torch.tensor([[-5.0, 7.0]]))
    assert (float(quantizer.lower), float(quantizer.upper)) == (-2, 4)
    quantizer.eval()
    quantizer(torch.tensor([[-50.0, 70.0]]))
    assert (float(quantizer.lower), float(quantizer.upper)) == (-2, 4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_rounds_to_the_deployed_grid_and_passes_the_gradient_inside(bits: int):
    quantizer = MovingRangeQuantizer(bits, momentum=0.01)
    quantizer(torch.tensor([[-2.0, 4.0]]))
    quantizer.eval()
    values = (3 * torch.randn(2, 3, 8, 8)).requires_grad_()
    out = quantizer(values)
    torch.testing.assert_close(out.detach(), fake_quantize(values.detach(), quantizer.deployed_grid()))
    out.sum().backward()
    inside = (values >= -2) & (values <= 4)
    assert not inside.all()
    assert values.grad is not None
    assert torch.equal(values.grad, inside.float())


def test_the_backward_pass_survives_the_next_batch():
    quantizer = MovingRangeQuantizer(4, momentum=0.5)
    values = torch.randn(2, 3, requires_grad=True)
    loss = quantizer(values).sum() + quantizer(2 * values).sum()
    loss.backward()
    assert values.grad is not None


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_symmetric_and_only_they_learn(per_channel: bool):
    made = objective("minmax", float_network("edsr"), {"per_channel": per_channel})
    low = [layer for layer in made.network.convolutions().values() if layer.low_bit]
    assert low
    for layer in low:
        assert isinstance(layer.weight_quantizer, SymmetricWeights)
        assert layer.weight_quantizer.per_channel == per_channel
    assert [group["name"] for group in made.parameter_groups()] == ["network"]
    made.start_epoch(1)
    parts = made(*batch())
    assert set(parts) == {"l1"}
    total(parts).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())
