from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same
from objectives import batch, float_network, objective, run_part, total

from srquant.methods.pams import MaxScaleQuantizer
from srquant.networks import EDSRConfig
from srquant.quantizers.grid import fake_quantize
from srquant.quantizers.weights import SymmetricWeights

BITS = (2, 3, 4, 8)


@pytest.mark.parametrize("bits", BITS)
def test_first_epoch(shared: Path, bits: int):
    case = Golden(shared / "golden" / "pams.npz", f"k{bits}_")
    quantizer = MaxScaleQuantizer(bits).train()
    for number, (x, alpha, out) in enumerate(zip(case["xs"], case["epoch1_alpha"], case["epoch1_out"], strict=True)):
        x.requires_grad_()
        rounded = quantizer(x)
        same(quantizer.alpha, alpha, what=f"alpha after batch {number}")
        same(rounded, out, what=f"batch {number}")
    quantizer.zero_grad()
    x = case["xs"][-1].requires_grad_()
    quantizer(x).backward(case["g"])
    same(x.grad, case["epoch1_gx"])
    same(quantizer.alpha.grad, case["epoch1_galpha"])


@pytest.mark.parametrize("bits", BITS)
def test_later_epochs(shared: Path, bits: int):
    case = Golden(shared / "golden" / "pams.npz", f"k{bits}_")
    quantizer = MaxScaleQuantizer(bits).train()
    quantizer.flags["measures"] = False
    with torch.no_grad():
        quantizer.alpha.copy_(case["epoch2_alpha"])
    x = case["x2"].requires_grad_()
    out = quantizer(x)
    out.backward(case["g"])
    same(out, case["epoch2_out"])
    same(x.grad, case["epoch2_gx"])
    same(quantizer.alpha.grad, case["epoch2_galpha"])
    assert len(out.detach().unique()) == int(case["epoch2_levels"])
    torch.testing.assert_close(fake_quantize(x.detach(), quantizer.deployed_grid()), out.detach())


@pytest.mark.parametrize("bits", BITS)
def test_weights(shared: Path, bits: int):
    case = Golden(shared / "golden" / "pams.npz", f"k{bits}_w")
    weight = case[""].requires_grad_()
    rounded, _ = SymmetricWeights(bits)(weight)
    rounded.backward(case["_g"])
    same(rounded, case["_out"])
    same(weight.grad, case["_gw"])


def test_an_evaluation_in_the_first_epoch_clips_and_leaves_the_maximum():
    quantizer = MaxScaleQuantizer(4)
    quantizer(torch.full((2, 1, 2, 2), 3.0))
    quantizer.eval()
    assert float(quantizer(torch.full((1, 1, 1, 1), 50.0)).detach()) == pytest.approx(3)
    assert float(quantizer.alpha.detach()) == pytest.approx(3)


def test_a_dead_tensor_gives_no_nan():
    quantizer = MaxScaleQuantizer(2)
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    out = quantizer(x)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert quantizer.alpha.grad is not None
    assert torch.isfinite(quantizer.alpha.grad).all()


def test_a_maximum_trained_below_zero_can_be_deployed_and_comes_back():
    quantizer = MaxScaleQuantizer(2).train()
    quantizer.flags["measures"] = False
    with torch.no_grad():
        quantizer.alpha.fill_(-0.01)
    values = torch.tensor([[[[-2.0, 1.0, 3.0]]]])
    rounded = quantizer(values)
    assert quantizer.deployed_grid().scale > 0
    assert torch.equal(rounded, fake_quantize(values, quantizer.deployed_grid()))
    (rounded - values).square().sum().backward()
    assert quantizer.alpha.grad is not None
    assert quantizer.alpha.grad < 0, "a larger maximum lowers the loss"


def test_block(shared: Path):
    golden = Golden(shared / "golden" / "pams.npz", "block_")
    network = float_network("edsr", EDSRConfig.official(2, blocks=1, width=8))
    made = objective("pams", network, bits=4, placement="ddtb-official", rest="float")
    made.start_epoch(2)
    graph = made.network.graph
    names = {"quant_act1": "head_0_4bit", "quant_act2": "body_0_body_1", "quant_act3": "body_0_body_2"}
    modules = {official: graph.get_submodule(f"quantizers.{ours}") for official, ours in names.items()}
    modules |= {"body.0": graph.get_submodule("body.0.body.0"), "body.3": graph.get_submodule("body.0.body.2")}
    parameters = {
        f"{official}.{name}": p for official, module in modules.items() for name, p in module.named_parameters()
    }
    assert len(parameters) == 7
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(golden[f"sd_{name}"])
    x = golden["x"].requires_grad_()
    out = run_part(graph, "head_0", "add", x)
    out.backward(golden["g"])
    same(out, golden["out"])
    same(x.grad, golden["gx"])
    for name, parameter in parameters.items():
        same(parameter.grad, golden[f"grad_{name}"], what=name)


def test_the_maximum_is_measured_in_the_first_epoch_and_learned_later():
    made = objective("pams", float_network("edsr"), bits=4)
    optimizer = torch.optim.Adam(made.parameter_groups())
    quantizers = [q for q in made.network.activation_quantizers().values() if isinstance(q, MaxScaleQuantizer)]
    assert quantizers
    made.start_epoch(1)
    total(made(*batch(1))).backward()
    measured = [float(q.alpha.detach()) for q in quantizers]
    optimizer.zero_grad()
    total(made(*batch(2))).backward()
    assert [float(q.alpha.detach()) for q in quantizers] != measured
    made.start_epoch(2)
    measured = [float(q.alpha.detach()) for q in quantizers]
    parts = made(*batch(3))
    assert set(parts) == {"l1", "skt"}
    assert [float(q.alpha.detach()) for q in quantizers] == measured
    optimizer.zero_grad()
    total(parts).backward()
    optimizer.step()
    assert all(abs(float(q.alpha.detach()) - old) > 1e-3 for q, old in zip(quantizers, measured, strict=True))
