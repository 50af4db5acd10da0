from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same
from torch.nn import functional

from srquant.errors import UserError
from srquant.methods.daq import ChannelQuantizer, GaussianWeights


def cases(shared: Path, prefix: str) -> list[str]:
    names = Golden(shared / "golden" / "daq.npz").names()
    found = sorted({name.rpartition("_")[0] for name in names if name.startswith(prefix)})
    assert len(found) > 3
    return found


def test_activations(shared: Path):
    golden = Golden(shared / "golden" / "daq.npz")
    for name in cases(shared, "a"):
        bits, sigma, fixed, _ = name.split("_")
        sigma_bits = int(sigma.removeprefix("qq"))
        quantizer = ChannelQuantizer(
            int(bits[1:]), sigma_bits=None if sigma_bits == 32 else sigma_bits, fixed_steps=fixed == "ft1"
        )
        case = golden.part(f"{name}_")
        x = case["x"].requires_grad_()
        out = quantizer(x)
        same(out, case["out"], what=name)
        out.backward(torch.ones_like(out) if "g" not in case else case["g"])
        same(x.grad, case["gx"], what=name)


def test_convolutions(shared: Path):
    golden = Golden(shared / "golden" / "daq.npz")
    for name in cases(shared, "w"):
        bits, fixed = name.split("_")
        case = golden.part(f"{name}_")
        x, weight = case["x"].requires_grad_(), case["w"].requires_grad_()
        rounded, _ = GaussianWeights(int(bits[1:]), fixed_steps=fixed == "ft1")(weight)
        out = functional.conv2d(x, rounded, case["b"], padding=1)
        same(out, case["out"], what=name)
        out.backward(case["g"])
        same(x.grad, case["gx"], what=name)
        same(weight.grad, case["gw"], what=name)


@pytest.mark.parametrize("value", [0.0, 2.5])
@pytest.mark.parametrize("sigma_bits", [None, 4])
def test_constant_channels_stay_as_they_are(value: float, sigma_bits: int | None):
    values = torch.full((2, 3, 4, 4), value, requires_grad=True)
    out = ChannelQuantizer(2, sigma_bits=sigma_bits)(values)
    torch.testing.assert_close(out.detach(), values.detach())
    out.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.ones_like(values))


def test_it_cannot_be_deployed():
    with pytest.raises(UserError, match="per picture"):
        ChannelQuantizer(2).deployed_grid()
    with pytest.raises(UserError, match="per picture"):
        GaussianWeights(2).codes(torch.randn(2, 2, 3, 3))
