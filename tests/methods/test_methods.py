"""What all methods promise to the training loop."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch
from objectives import batch, float_network, objective, total

from srquant.errors import UserError
from srquant.methods import METHODS, QuantizedObjective
from srquant.methods.base import input_of


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_one_file_with_its_paper_and_its_deviations(method: str):
    module = importlib.import_module(f"srquant.methods.{method}")
    told = module.__doc__ or ""
    assert "https://arxiv.org" in told
    assert "Deviations" in told
    assert (Path(__file__).parent / f"test_{method}.py").is_file()


def trained(method: str, name: str, rest: str, epochs: int = 3) -> tuple[QuantizedObjective, list[float]]:
    made = objective(method, float_network(name), bits=4, rest=rest, learning_rate=1e-3)
    optimizer = torch.optim.Adam(made.parameter_groups())
    losses: list[float] = []
    for epoch in range(1, epochs + 1):
        made.start_epoch(epoch)
        for _ in range(4):
            with torch.set_grad_enabled(made.learns(epoch)):
                loss = total(made(*batch()))
            if made.learns(epoch):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
    return made, losses


@pytest.mark.parametrize("rest", ["int8", "float"])
@pytest.mark.parametrize("name", ["edsr", "rdn", "srresnet"])
@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_of_one_batch(method: str, name: str, rest: str):
    _, losses = trained(method, name, rest)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_state_can_be_put_back(method: str):
    made, _ = trained(method, "edsr", "int8")
    other = objective(method, float_network("edsr"), bits=4)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    assert other.epoch == 3
    low, high = batch(8)
    for one, two in zip(made(low, high).values(), other(low, high).values(), strict=True):
        assert torch.equal(one, two)
    made.network.eval()
    other.network.eval()
    assert torch.equal(made.network(low), other.network(low))


@pytest.mark.parametrize("method", METHODS)
def test_parameter_groups_hold_every_parameter_once(method: str):
    made = objective(method, float_network("srresnet"))
    groups = made.parameter_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in made.parameters() if p.requires_grad}
    assert all(group["params"] and group["lr"] > 0 and group["name"] for group in groups)


@pytest.mark.parametrize("method", METHODS)
def test_wrong_options_name_the_nearest(method: str):
    with pytest.raises(UserError, match=r"did you mean '(method\.)?skt_weight'"):
        objective(method, float_network("edsr"), {"skt_weigth": 1})


@pytest.mark.parametrize("method", METHODS)
def test_the_given_networks_stay_as_they_are(method: str):
    network = float_network("edsr").train()
    before = copy.deepcopy(network.state_dict())
    made = objective(method, network, {"skt_weight": 10.0}, learning_rate=1e-2)
    optimizer = torch.optim.Adam(made.parameter_groups())
    made.start_epoch(2)
    total(made(*batch())).backward()
    optimizer.step()
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert made.network.method == method


@pytest.mark.parametrize("method", METHODS)
def test_bf16_keeps_the_quantisers_exact(method: str):
    made, _ = trained(method, "edsr", "int8")
    for quantizer in made.network.activation_quantizers().values():
        if quantizer.low_bit:
            values = torch.randn(2, quantizer.channels, 5, 5)
            quantizer.eval()
            expected = quantizer(values)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(quantizer(values), expected)
    made.train()
    with torch.autocast("cpu", torch.bfloat16):
        parts = made(*batch())
    assert all(part.dtype == torch.float32 for part in parts.values())
    total(parts).backward()


def test_hooks_do_not_stay():
    module = torch.nn.Conv2d(1, 1, 1)
    with input_of(module) as seen:
        module(torch.ones(1, 1, 2, 2))
    module(torch.ones(1, 1, 2, 2))
    assert len(seen) == 1
    assert not module._forward_pre_hooks
