from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same
from torch import nn

from srquant.methods.base import outputs_of
from srquant.methods.ddtb import GatedBoundsQuantizer
from srquant.methods.gate import Gate, TernaryConv, round_to_range, scales

MODES = ("train_gated", "eval_gated", "train_warmup", "eval_testonly_epoch1")


def official_quantizer(case: Golden, bits: int, mode: str) -> GatedBoundsQuantizer:
    quantizer = GatedBoundsQuantizer(bits, 8, gate="official", percentile=None, grid="official")
    with torch.no_grad():
        quantizer.upper.copy_(case["u"])
        quantizer.lower.copy_(case["l"])
    gate = quantizer.gate
    assert gate is not None
    norm = {"weight": "bn_w", "bias": "bn_b", "running_mean": "bn_rm_before", "running_var": "bn_rv_before"}
    state = {f"2.{name}": case[golden] for name, golden in norm.items()}
    gate.load_state_dict({**gate.state_dict(), **state, "1.weight": case["conv1_w"], "5.weight": case["conv2_w"]})
    quantizer.flags["is_dynamic"] = True
    quantizer.flags["gates_act"] = mode != "train_warmup"
    return quantizer.train(mode.startswith("train"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4])
def test_official_gate(shared: Path, bits: int, mode: str):
    case = Golden(shared / "golden" / "act_gate.npz", f"b{bits}_{mode}_")
    quantizer = official_quantizer(case, bits, mode)
    gate = quantizer.gate
    assert gate is not None
    x = case["x"].requires_grad_()
    with outputs_of(list(gate)) as stages:
        out = quantizer(x)
    assert len(stages) == 6
    for number, stage in enumerate(stages):
        same(stage, case[f"atten{number}_out"], what=f"stage {number}")
    logits = stages[-1]
    regulariser = logits.square().mean()
    same(logits, case["logits"])
    same(regulariser, case["reg_loss"])
    upper, lower = scales(logits)
    same(upper, case["scale_u"])
    same(lower, case["scale_l"])
    same(out, case["out"])
    loss = (out * case["g"]).sum()
    (loss + regulariser if mode == "train_warmup" else loss).backward()
    same(x.grad, case["gx"])
    same(quantizer.upper.grad, case["gu"])
    same(quantizer.lower.grad, case["gl"])
    last = gate[5]
    assert isinstance(last, TernaryConv)
    same(last.weight.grad, case["gconv2_w"])
    untrained = {"conv1": gate.get_parameter("1.weight"), "bn_w": gate.get_parameter("2.weight")}
    untrained["bn_b"] = gate.get_parameter("2.bias")
    assert set(case.words("params_with_no_grad")) == set(untrained)
    assert all(parameter.grad is None for parameter in untrained.values())
    same(gate.get_buffer("2.running_mean"), case["bn_rm_after"])
    same(gate.get_buffer("2.running_var"), case["bn_rv_after"])


@pytest.mark.parametrize(("name", "bits"), [("k2", 2), ("k8", 8), ("k2_relu", 2)])
def test_official_rounding_of_the_context(shared: Path, name: str, bits: int):
    case = Golden(shared / "golden" / "gate_input_quant.npz", f"{name}_")
    lower, upper = case["x"].aminmax()
    same(round_to_range(case["x"], lower.reshape(1), upper.reshape(1), bits), case["out"])


def repaired_quantizer(bits: int = 2) -> GatedBoundsQuantizer:
    torch.manual_seed(5)
    quantizer = GatedBoundsQuantizer(bits, 6, gate="repaired", percentile=99)
    quantizer.flags["is_dynamic"] = True
    quantizer.flags["gates_act"] = True
    quantizer(torch.randn(4, 6, 5, 5))
    return quantizer


def wide_open(quantizer: GatedBoundsQuantizer) -> Gate:
    """Give the last convolution weights, as training does."""
    gate = quantizer.gate
    assert gate is not None
    nn.init.normal_(gate.get_parameter("5.weight"))
    return gate


def test_repaired_gate_starts_at_one():
    quantizer = repaired_quantizer()
    values = torch.randn(3, 6, 5, 5)
    gated = quantizer(values)
    quantizer.flags["gates_act"] = False
    assert torch.equal(gated, quantizer(values))


def test_repaired_gate_trains_every_parameter():
    quantizer = repaired_quantizer()
    gate = wide_open(quantizer)
    quantizer(3 * torch.randn(4, 6, 5, 5)).square().sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("value", [0.0, 3.25, -1e4])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
def test_repaired_gate_survives_constant_inputs(value: float, training: bool, samples: int):
    quantizer = repaired_quantizer()
    gate = wide_open(quantizer)
    quantizer.train(training)
    values = torch.full((samples, 6, 4, 4), value, requires_grad=True)
    out = quantizer(values)
    assert torch.isfinite(out).all()
    out.sum().backward()
    found = [values, quantizer.upper, quantizer.lower, *gate.parameters()]
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in found)
    assert all(torch.isfinite(buffer).all() for buffer in quantizer.buffers())


def test_bounds_calibrated_on_a_constant_tensor_train_on():
    quantizer = GatedBoundsQuantizer(2, 4, gate=None)
    out = quantizer(torch.zeros(2, 4, 3, 3, requires_grad=True))
    (out - 1).square().sum().backward()
    assert quantizer.initialised
    assert quantizer.lower < quantizer.upper
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in (quantizer.lower, quantizer.upper))


@pytest.mark.parametrize("training", [True, False])
def test_repaired_gate_looks_at_one_picture_only(training: bool):
    quantizer = repaired_quantizer()
    wide_open(quantizer)
    quantizer.train(training)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    batch = torch.randn(4, 6, 5, 5) * torch.tensor([0.1, 1.0, 10.0, 100.0]).view(4, 1, 1, 1)
    together = quantizer(batch)
    assert len({float(part.detach().abs().max()) for part in together}) > 2  # the gate does scale
    for number, expected in enumerate(together):
        quantizer.load_state_dict(state)
        torch.testing.assert_close(quantizer(batch[number : number + 1])[0], expected, rtol=1e-5, atol=1e-5)


def test_official_gate_looks_at_the_batch():
    torch.manual_seed(0)
    gate = Gate(6, "official").eval()
    batch = torch.randn(4, 6, 5, 5) * torch.tensor([0.1, 1.0, 10.0, 100.0]).view(4, 1, 1, 1)
    assert not torch.allclose(gate(batch)[:1], gate(batch[:1]))


def test_the_running_norm_learns_the_statistics():
    torch.manual_seed(1)
    gate = repaired_quantizer().gate
    assert gate is not None
    norm = gate[2]
    for _ in range(300):
        norm(2 + 3 * torch.randn(64, 32, 1, 1))
    assert torch.allclose(gate.get_buffer("2.running_mean"), torch.full((32,), 2.0), atol=0.5)
    assert torch.allclose(gate.get_buffer("2.running_var"), torch.full((32,), 9.0), atol=2)
    norm.eval()
    before = gate.get_buffer("2.running_mean").clone()
    norm(torch.randn(4, 32, 1, 1))
    assert torch.equal(before, gate.get_buffer("2.running_mean"))


def test_the_gate_is_exact_under_autocast():
    quantizer = repaired_quantizer().eval()
    wide_open(quantizer)
    values = torch.randn(2, 6, 5, 5)
    expected = quantizer(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(values), expected)
