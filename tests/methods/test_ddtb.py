from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from objectives import OFFICIAL, batch, float_network, objective, total
from torch import Tensor

from srquant.errors import UserError
from srquant.methods.ddtb import DDTB, Spread
from srquant.methods.passing import PassingBounds


def ddtb(name: str = "edsr", options: dict[str, Any] | None = None, **settings: Any) -> DDTB:
    made = objective("ddtb", float_network(name), options, **settings)
    assert isinstance(made, DDTB)
    return made


def run_epoch(made: DDTB, epoch: int, optimizer: torch.optim.Optimizer, steps: int = 2) -> list[dict[str, float]]:
    made.start_epoch(epoch)
    told = []
    for step in range(steps):
        with torch.set_grad_enabled(made.learns(epoch)):
            parts = made(*batch(10 * epoch + step))
        told.append({name: float(part.detach()) for name, part in parts.items()})
        if made.learns(epoch):
            optimizer.zero_grad()
            total(parts).backward()
            optimizer.step()
    return told


@pytest.mark.parametrize("rest", ["int8", "float"])
@pytest.mark.parametrize("name", ["edsr", "rdn", "srresnet"])
def test_the_statistics_epoch_passes_the_float_network(name: str, rest: str):
    network = float_network(name).eval()
    made = ddtb(name, rest=rest)
    before = {key: value.clone() for key, value in made.state_dict().items() if "spread" not in key}
    made.start_epoch(1)
    assert not made.learns(1)
    low = batch(3)[0].round()
    peak = network.info.peak
    with torch.no_grad():
        made(low, batch(3)[1])
        assert not made.network.training
        passed = made.network(low)
        wanted = network(low * (peak / 255)) * (255 / peak)
    if rest == "float":
        torch.testing.assert_close(passed, wanted, rtol=1e-5, atol=1e-3)
    else:  # the output is a picture; folding pads EDSR with one grey in place of three colours
        assert (passed - wanted.clamp(0, 255)).abs().max() <= (3 if name == "edsr" else 0.51)
    after = made.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.endswith("flags.passes")} | {"_extra_state"}
    assert all(int(q.spread.count) == 1 for q in made.low_bit_quantizers().values())


def test_the_spread_is_the_variance_of_the_ends():
    spread = Spread()
    batches = [torch.randn(2, 3, 4, 4) * scale + 100 for scale in (1, 5, 2, 9)]
    for values in batches:
        spread.see(values)
    highest = torch.stack([values.max() for values in batches]).double()
    lowest = torch.stack([values.min() for values in batches]).double()
    assert spread.intensity() == pytest.approx(float(highest.var(unbiased=False) + lowest.var(unbiased=False)))


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.3, 1), (0.5, 3), (1.0, 6)])
def test_gates_go_to_the_tensors_of_the_largest_dynamic_intensity(ratio: float, expected: int):
    made = ddtb(options={"dynamic_ratio": ratio})
    quantizers = list(made.low_bit_quantizers().values())
    assert len(quantizers) == 6
    made.start_epoch(1)
    for place, quantizer in enumerate(quantizers):
        for value in (0.0, float(place)):
            quantizer.spread.see(torch.tensor([-value, value]))
    made.start_epoch(2)
    assert [q.flags["is_dynamic"] for q in quantizers] == [place >= 6 - expected for place in range(6)]
    made.start_epoch(3)
    assert sum(q.flags["is_dynamic"] for q in quantizers) == expected


def test_the_phases():
    made = ddtb(options={"dynamic_ratio": 0.5, "gate_start_epoch": 4})
    optimizer = torch.optim.Adam(made.parameter_groups())
    first = run_epoch(made, 1, optimizer)
    assert set(first[0]) == {"l1"}
    assert not any(bool(q.initialised) for q in made.low_bit_quantizers().values())
    for epoch in (2, 3):
        assert set(run_epoch(made, epoch, optimizer)[0]) == {"l1", "skt", "gate"}
        assert not any(q.gated for q in made.low_bit_quantizers().values())
    assert all(bool(q.initialised) for q in made.low_bit_quantizers().values())
    last = run_epoch(made, 4, optimizer)
    assert set(last[0]) == {"l1", "skt"}
    assert sum(q.gated for q in made.low_bit_quantizers().values()) == 3


def test_without_gates_every_epoch_learns():
    made = ddtb(options={"gate": "none"})
    assert made.learns(1)
    optimizer = torch.optim.Adam(made.parameter_groups())
    losses = [part for epoch in (1, 2, 3) for part in run_epoch(made, epoch, optimizer, 4)]
    assert set(losses[0]) == {"l1", "skt"}
    assert all(q.gate is None and not q.gated for q in made.low_bit_quantizers().values())
    assert all(bool(q.initialised) for q in made.low_bit_quantizers().values())


def test_gates_that_act_at_once_find_calibrated_bounds():
    made = ddtb(options={"gate_start_epoch": 2, "dynamic_ratio": 1.0})
    optimizer = torch.optim.Adam(made.parameter_groups())
    run_epoch(made, 1, optimizer)
    run_epoch(made, 2, optimizer, 1)
    assert all(bool(q.initialised) for q in made.low_bit_quantizers().values())


@pytest.mark.parametrize("name", ["edsr", "rdn", "srresnet"])
@pytest.mark.parametrize("options", [{}, OFFICIAL])
def test_no_parameter_is_forgotten(name: str, options: dict[str, Any]):
    made = ddtb(name, {**options, "gate_start_epoch": 2, "dynamic_ratio": 1.0})
    optimizer = torch.optim.Adam(made.parameter_groups())
    run_epoch(made, 1, optimizer)
    run_epoch(made, 2, optimizer)
    grouped = {id(p) for group in made.parameter_groups() for p in group["params"]}
    for key, parameter in made.named_parameters():
        assert (id(parameter) in grouped) == parameter.requires_grad, key
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_parameter_groups(bits: int):
    made = ddtb(options={"bounds_learning_rate": 0.02, "gate": "none"}, bits=bits, learning_rate=3e-4)
    groups = {group["name"]: group for group in made.parameter_groups()}
    rates = {"network": 3e-4, "bounds": 0.02, "rest bounds": 0.02 * (2**bits - 1) / 255}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(rates)
    bounds = [bound for q in made.low_bit_quantizers().values() for bound in (q.lower, q.upper)]
    assert {id(p) for p in groups["bounds"]["params"]} == {id(bound) for bound in bounds}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(made.parameters()))


def test_the_rest_in_float_has_no_bounds():
    assert [group["name"] for group in ddtb(rest="float").parameter_groups()] == ["network", "bounds"]


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["edsr", "srresnet"])
def test_the_state_can_be_put_back_in_the_middle_of_every_phase(name: str, epoch: int):
    def fresh() -> tuple[DDTB, torch.optim.Optimizer]:
        made = ddtb(name, {"dynamic_ratio": 0.5, "gate_start_epoch": 4})
        return made, torch.optim.Adam(made.parameter_groups())

    def step(made: DDTB, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
        with torch.set_grad_enabled(made.learns(epoch)):
            loss = total(made(*batch(seed)))
        if made.learns(epoch):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.detach()

    made, optimizer = fresh()
    for earlier in range(1, epoch):
        run_epoch(made, earlier, optimizer)
    made.start_epoch(epoch)
    step(made, optimizer, 77)
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(copy.deepcopy(made.state_dict()))
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(made, optimizer, 78), step(resumed, resumed_optimizer, 78))
    made.start_epoch(epoch + 1)
    resumed.start_epoch(epoch + 1)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())
    assert made.network.training == resumed.network.training


def test_a_copy_that_follows_parameters_and_buffers_computes_the_same():
    made = ddtb(options={"gate_start_epoch": 3})
    average = copy.deepcopy(made.network)
    optimizer = torch.optim.Adam(made.parameter_groups())
    for epoch in (1, 2, 3):
        run_epoch(made, epoch, optimizer)
        with torch.no_grad():
            for own, other in zip(average.parameters(), made.network.parameters(), strict=True):
                own.copy_(other)
            for own, other in zip(average.buffers(), made.network.buffers(), strict=True):
                own.copy_(other)
        low, _ = batch(5)
        assert torch.equal(average.eval()(low), made.network.eval()(low))


def test_the_teacher_is_neither_saved_nor_trained():
    network = float_network("edsr")
    made = objective("ddtb", network)
    assert not [key for key in made.state_dict() if "teacher" in key]
    made.start_epoch(2)
    total(made(*batch())).backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_without_teacher_there_is_no_transfer():
    made = ddtb(options={"gate": "none"}, teacher=False)
    made.start_epoch(1)
    assert set(made(*batch())) == {"l1"}


def test_the_untouched_student_agrees_with_its_teacher():
    made = ddtb(bits=8, rest="float", options={"gate": "none", "percentile": 100})
    made.start_epoch(1)
    assert float(made(*batch())["skt"].detach()) < 1e-3
    network = float_network("edsr")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    stranger = objective("ddtb", float_network("edsr"), {"gate": "none", "percentile": 100}, bits=8, rest="float")
    stranger._teacher = (network,)
    stranger.start_epoch(1)
    assert float(stranger(*batch())["skt"].detach()) > 0.1


def test_a_picture_does_not_depend_on_its_batch_mates():
    made = ddtb(options={"gate_start_epoch": 2, "dynamic_ratio": 1.0})
    optimizer = torch.optim.Adam(made.parameter_groups())
    run_epoch(made, 1, optimizer)
    run_epoch(made, 2, optimizer, 6)
    made.eval()
    low, _ = batch(1, samples=3)
    with torch.no_grad():
        together = made.network(low)
        for number in range(3):
            assert (made.network(low[number : number + 1])[0] - together[number]).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skt_wieght": 3}, "skt_weight"),
        ({"gate": "repired"}, "gate = 'repired'"),
        ({"percentile": 20}, "percentile"),
        ({"gate_start_epoch": 1}, "gate_start_epoch"),
        ({"bounds_learning_rate": 0}, "bounds_learning_rate"),
        ({"bounds_learning_rate": float("inf")}, "bounds_learning_rate"),
        ({"dynamic_ratio": 1.5}, "dynamic_ratio"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        ddtb(options=options)


def test_describe_is_plain_data():
    told = ddtb(options={"percentile": 95}).describe()
    assert told["method"] == "ddtb"
    assert told["percentile"] == 95
    assert told["skt_weight"] == 1000


def test_bounds_of_the_rest_start_at_the_ends_of_the_first_batch():
    made = ddtb(options={"gate": "none"})
    made.start_epoch(1)
    made(*batch())
    rest = [q for q in made.network.activation_quantizers().values() if isinstance(q, PassingBounds) and not q.low_bit]
    assert rest
    assert all(q.bits == 8 and bool(q.initialised) and q.percentile == 100 for q in rest)
