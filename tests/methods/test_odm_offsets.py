"""Shifts and scales of channels in training: who gets them, how they move, what is deployed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from objectives import batch, float_network, objective
from offset_objectives import OPTIONS, low_bit, made, moved, steps
from torch import Tensor

from srquant.config import TrainingConfig
from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.integer import lower, reference
from srquant.methods.averaged import AveragedBounds
from srquant.methods.odm import ODM
from srquant.methods.offsets import OffsetConfig, scalable, shiftable
from srquant.quantizers.acceleration import use_kernel
from srquant.quantizers.deployment import deploy
from srquant.quantizers.offset_codes import factor_levels
from srquant.quantizers.straight_through import fake_quantize_between


@pytest.mark.parametrize(("ratio", "count"), [(0.4, 2), (0.3, 2), (0.01, 1), (1.0, 5)])
def test_the_tensors_that_differ_most_are_chosen(ratio: float, count: int):
    """A share of those that can, rounded: 0.3 of 5 are 2, of 4 are 1; at least one."""
    trained = made(options={"offset_ratio": ratio})
    trained.start_epoch(1)
    with torch.no_grad():
        for step in range(3):
            assert not trained.learns(1)
            trained(*batch(step))
    assert trained.learns(1)
    quantizers = low_bit(trained)
    assert list(quantizers) == shiftable(trained.network)
    assert len(quantizers) == 5
    means = sorted(quantizers, key=lambda name: quantizers[name].statistics.mismatch_of_means())
    shifted = {name for name, q in quantizers.items() if q.offsets["shifts"]}
    assert shifted == set(means[-count:])
    can = [name for name in quantizers if name != "add_1"]
    assert can == scalable(trained.network)
    deviations = sorted(can, key=lambda name: quantizers[name].statistics.mismatch_of_deviations())
    scaled = {1.0: 4, 0.4: 2}.get(ratio, 1)
    assert {name for name, q in quantizers.items() if q.offsets["scales"]} == set(deviations[-scaled:])


@pytest.mark.parametrize(("placement", "count"), [("strict", 4), ("full", 2), ("daq", 2)])
def test_only_tensors_that_can_have_offsets_count(placement: str, count: int):
    """The parts of RDN's concatenations share a quantiser, which has other channel counts from call to call."""
    trained = made("rdn", {"offset_ratio": 0.5}, placement=placement)
    trained.check(TrainingConfig())
    assert all(np.isfinite(steps(trained)))
    found = low_bit(trained)
    assert list(found) == shiftable(trained.network)
    assert len(found) == count
    assert sum(q.offsets["shifts"] for q in found.values()) == count // 2
    others = [q for n, q in trained.network.activation_quantizers().items() if q.low_bit and n not in found]
    assert others
    assert all(type(q) is AveragedBounds for q in others)


@pytest.mark.parametrize(("offsets", "expected"), [("shift", (5, 0)), ("scale", (0, 4)), ("both", (5, 4))])
def test_each_kind_can_be_left_out(offsets: str, expected: tuple[int, int]):
    trained = made(options={"offsets": offsets})
    steps(trained, epochs=1)
    found = low_bit(trained).values()
    assert (sum(q.offsets["shifts"] for q in found), sum(q.offsets["scales"] for q in found)) == expected


def test_with_a_float_rest_every_shifted_tensor_may_be_scaled_too():
    options = {**OPTIONS, "skt_weight": 0.0}
    trained = objective("odm", float_network("edsr"), options, bits=4, placement="strict", rest="float")
    assert isinstance(trained, ODM)
    steps(trained, epochs=1)
    found = low_bit(trained).values()
    assert len(found) == 5
    assert all(q.offsets["shifts"] and q.offsets["scales"] for q in found)


def test_offsets_start_where_nothing_changes_and_are_trained():
    trained, without = made(), made(options={"offsets": "none"})
    for one in (trained, without):
        one.start_epoch(1)
        with torch.no_grad():
            for step in range(3):
                one(*batch(step))
        one.eval()
    low = batch(50)[0]
    with torch.inference_mode():
        torch.testing.assert_close(trained.network(low), without.network(low), rtol=0, atol=0)
    losses = steps(trained, epochs=4, same=True)
    assert min(losses[-3:]) < losses[0]
    found = low_bit(trained).values()
    assert all(q.shift_steps.abs().max() > 0 for q in found)
    assert all(q.log_factors.abs().max() > 0 for q in found if q.offsets["scales"])


@pytest.mark.parametrize("peak", [1.0, 255.0])
@pytest.mark.parametrize("offset_bits", [None, 2, 4])
def test_offsets_may_start_from_the_statistics(peak: float, offset_bits: int | None):
    trained = made(options={"offset_start": "statistics", "offset_bits": offset_bits}, peak=peak)
    steps(trained, epochs=1, count=3)
    found = low_bit(trained).values()
    assert not any(quantizer.initialised for quantizer in found)
    trained.start_epoch(2)
    trained(*batch(3))
    for quantizer in found:
        assert quantizer.initialised
        mean, deviation = quantizer.statistics.mean, quantizer.statistics.deviation()
        if quantizer.offsets["scales"]:
            wanted = deviation.mean() / deviation.clamp(min=0.01 * deviation.mean())
            wanted = wanted if offset_bits is None else wanted.clamp(0.25, 2 ** (2 - 4 / 2**offset_bits))
            torch.testing.assert_close(quantizer.log_factors.exp().double(), wanted, rtol=1e-5, atol=0)
        factors = quantizer.channel_factors()
        mean = mean if factors is None else mean * factors.detach()
        steps_to_mean = (mean.mean() - mean) / quantizer.step()
        half = 100 if offset_bits is None else 2 ** (offset_bits - 1)
        found_steps = quantizer.shift_steps.double()
        torch.testing.assert_close(found_steps, steps_to_mean.clamp(0.5 - half, half + 0.5), rtol=1e-4, atol=1e-4)
    assert max(len(moved(quantizer).unique()) for quantizer in found) > 2


def test_shifts_start_within_what_the_carrier_holds():
    trained = made(options={"offset_start": "statistics"}, bits=7)
    trained.start_epoch(1)
    for quantizer in low_bit(trained).values():
        far = torch.tensor([0.0, 0, 0, 0, 0, 0, -1000, 1000]).view(1, -1, 1, 1)
        values = torch.randn(2, 8, 40, 40, generator=torch.Generator().manual_seed(0)) + far
        quantizer.statistics.see(values)
        quantizer.act(shifts=True, scales=False)
        quantizer.set_from(values)
        starts = quantizer.window_starts()
        assert starts.min() >= -128
        assert starts.max() == 128 - 2**7
        assert float((quantizer.shift_steps.detach() + moved(quantizer)).abs().max()) <= 0.5


@pytest.mark.parametrize("peak", [1.0, 255.0])
@pytest.mark.parametrize("start", ["neutral", "statistics"])
def test_training_moves_windows_whatever_the_range_of_values(peak: float, start: str):
    options = {"offset_start": start, "bounds_learning_rate": 1e-3 * peak, "offset_learning_rate": 0.1}
    trained = made(options=options, bits=2, peak=peak)
    steps(trained, epochs=1)
    before = {name: moved(q) for name, q in low_bit(trained).items()}
    assert (start == "neutral") == all(not move.any() for move in before.values())
    trained.train()
    losses = steps(trained, epochs=4, same=True)
    assert min(losses[-3:]) < losses[0]
    changed = [bool((moved(q) != before[name]).any()) for name, q in low_bit(trained).items()]
    assert sum(changed) >= 3


def test_shifts_and_scales_have_a_rate_of_their_own():
    def rates(**options: float) -> dict[str, float]:
        trained = made(options=options)
        groups = {group["name"]: group for group in trained.parameter_groups()}
        parameters = [p for q in low_bit(trained).values() for p in (q.shift_steps, q.log_factors)]
        assert {id(p) for p in groups["offsets"]["params"]} == {id(p) for p in parameters}
        together = [id(p) for group in groups.values() for p in group["params"]]
        assert len(together) == len(set(together)) == len([p for p in trained.parameters() if p.requires_grad])
        return {name: group["lr"] for name, group in groups.items()}

    assert (rates()["bounds"], rates()["offsets"]) == (0.05, 0.05)
    assert (rates(offset_learning_rate=0.2)["bounds"], rates(offset_learning_rate=0.2)["offsets"]) == (0.05, 0.2)
    without = made(options={"offsets": "none"}).parameter_groups()
    assert "offsets" not in {group["name"] for group in without}


def test_a_run_that_is_put_back_goes_on_with_the_same_offsets():
    trained = made(options={"offset_ratio": 0.4})
    steps(trained)
    other = made(options={"offset_ratio": 0.4})
    other.load_state_dict(trained.state_dict())
    other.start_epoch(3)
    trained.start_epoch(3)
    for one, two in zip(low_bit(trained).values(), low_bit(other).values(), strict=True):
        assert one.offsets["shifts"] == two.offsets["shifts"]
        assert torch.equal(one.shift_steps, two.shift_steps)
    low, high = batch(8)
    for one, two in zip(trained(low, high).values(), other(low, high).values(), strict=True):
        assert torch.equal(one, two)


def test_few_bits_are_trained_on_their_levels():
    trained = made(options={"offset_bits": 4, "bounds_learning_rate": 0.1})
    losses = steps(trained, epochs=4, same=True)
    assert min(losses[-3:]) < losses[0]
    levels = torch.from_numpy(factor_levels(4))
    scaled = [q for q in low_bit(trained).values() if q.offsets["scales"]]
    assert len(scaled) == 4
    for quantizer in scaled:
        factors = quantizer.channel_factors()
        assert factors is not None
        assert bool(torch.isin(factors, levels).all())
        assert bool((factors != 1).any())
        exact = quantizer.log_factors.exp()
        assert not torch.equal(factors, exact)
        ends = exact.clamp(levels[0], levels[-1])
        assert bool(((factors / ends).log2().abs() <= 0.1251).all())


def test_scales_start_within_what_few_bits_hold():
    trained = made(options={"offset_start": "statistics", "offset_bits": 2})
    trained.start_epoch(1)
    for quantizer in low_bit(trained).values():
        quantizer.statistics.see(torch.randn(2, 8, 4, 4) * torch.logspace(-3, 1, 8).view(1, -1, 1, 1))
        quantizer.act(shifts=False, scales=True)
        found = quantizer.log_factors.detach().exp()
        assert float(found.min()) == pytest.approx(0.25)
        assert float(found.max()) == pytest.approx(2)


@pytest.mark.parametrize(("bits", "offset_bits"), [(2, None), (3, None), (4, None), (2, 4), (4, 4)])
@pytest.mark.parametrize("name", ["edsr", "srresnet", "rdn"])
def test_what_was_trained_is_deployed_and_runs_on_every_engine(name: str, bits: int, offset_bits: int | None):
    trained = made(name, {"offset_bits": offset_bits}, bits=bits)
    steps(trained, epochs=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for quantizer in low_bit(trained).values():
            steps_more = torch.rand(quantizer.channels, generator=generator) - 0.5
            quantizer.shift_steps.add_(0.5 * (2**bits - 1) * steps_more)
            quantizer.log_factors.add_(torch.rand(quantizer.channels, generator=generator) - 0.5)
    trained.eval()
    low = batch(50)[0].round()
    with torch.inference_mode():
        wanted, deployed = trained.network(low), deploy(trained.network)
        found = deployed(low)
    assert wanted.std() > 3
    assert (found - wanted).abs().max() <= (2 if name == "srresnet" else 1)  # its normalisation is folded
    picture = low[0].permute(1, 2, 0).numpy().astype(np.uint8)
    graph = lower(deployed)
    assert graph.channel_limits()
    truth = reference.run(graph, picture).astype(int)
    simulated = found[0].clamp(0, 255).round().permute(1, 2, 0).numpy()
    assert np.abs(truth - simulated).max() <= 1
    engines = {"onnxruntime": 0, "torch": 2, "openvino": 2}
    if find_spec("ai_edge_litert") is not None:
        engines["litert"] = 0
    for engine, largest in engines.items():
        made_by = open_engine(deployed, engine, threads=1).run(picture).astype(int)
        assert np.abs(made_by - truth).max() <= largest, engine


def test_free_shifts_are_a_simulation():
    trained = made(options={"offset_steps": "free", "offsets": "shift"})
    steps(trained)
    quantizer = next(q for q in low_bit(trained).values() if q.offsets["shifts"])
    with torch.no_grad():
        quantizer.shift_steps.uniform_(-1, 1)
        values = torch.randn(2, quantizer.channels, 4, 4)
        shift = (quantizer.shift_steps * quantizer.step()).view(1, -1, 1, 1)
        wanted = fake_quantize_between(values + shift, quantizer.lower, quantizer.upper, 4) - shift
        torch.testing.assert_close(quantizer.round(values, quantizer.lower, quantizer.upper), wanted)
    with pytest.raises(UserError, match="offset_steps = 'free', which no integers compute; train with 'whole'"):
        deploy(trained.network)


def test_free_shifts_of_whole_steps_train_like_whole_ones():
    found: list[list[Tensor]] = []
    for kind in ("whole", "free"):
        trained = made(options={"offset_steps": kind, "offsets": "shift"})
        quantizer = next(iter(low_bit(trained).values()))
        quantizer.offsets["shifts"] = True
        with torch.no_grad():
            quantizer.lower.fill_(-1)
            quantizer.upper.fill_(2)
            quantizer.shift_steps.copy_(torch.arange(quantizer.channels) - 3)
        values = 2 * torch.randn(2, quantizer.channels, 6, 6, generator=torch.Generator().manual_seed(1))
        values.requires_grad_()
        rounded = quantizer.round(values, quantizer.lower, quantizer.upper)
        (rounded * torch.linspace(-1, 2, rounded.numel()).view_as(rounded)).sum().backward()
        grads = values.grad, quantizer.lower.grad, quantizer.upper.grad, quantizer.shift_steps.grad
        found.append([rounded.detach(), *(grad for grad in grads if grad is not None)])
    assert len(found[0]) == 5
    for whole, free in zip(*found, strict=True):
        torch.testing.assert_close(free, whole, rtol=1e-4, atol=1e-4)


def test_a_scaled_tensor_is_itself_but_for_its_grid():
    trained = made(options={"offsets": "scale"})
    steps(trained, epochs=1)
    quantizer = next(q for q in low_bit(trained).values() if q.offsets["scales"])
    with torch.no_grad():
        quantizer.log_factors.uniform_(-1, 1)
        factors = quantizer.log_factors.exp().view(1, -1, 1, 1)
        values = torch.rand(2, quantizer.channels, 4, 4) * quantizer.upper
        inside = values * factors < quantizer.upper
        missing = (quantizer.round(values, quantizer.lower, quantizer.upper) - values).abs()
        assert bool((missing <= 0.51 * quantizer.step() / factors)[inside].all())


@pytest.mark.parametrize("kernel", ["fused", "integer"])
def test_kernels_that_round_channels_alike_are_not_used_for_them(kernel: Any):
    trained = made()
    use_kernel(trained.network, kernel)
    assert any(c.fusion is not None for c in trained.network.convolutions().values() if c.low_bit)
    with pytest.raises(UserError, match=r"training.kernel = 'eager' or 'compiled'"):
        trained.check(TrainingConfig())


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="offsets take at most 7 bit"):
        made(bits=8).check(TrainingConfig())
    with pytest.raises(UserError, match=r"needs method\.grid = 'integer'"):
        made(options={"grid": "official"})
    with pytest.raises(UserError, match="'rdn' under the placement 'ddtb-official' can have offsets"):
        made("rdn", placement="ddtb-official").check(TrainingConfig())
    with pytest.raises(UserError, match="none is read by convolutions alone and made by one; use"):
        made("srresnet", {"offsets": "scale"}, placement="full").check(TrainingConfig())
    with pytest.raises(UserError, match=r"offset_ratio.*greater than 0"):
        made(options={"offset_ratio": 0})
    with pytest.raises(UserError, match="calibration_batches above 0"):
        made(options={"calibration_batches": 0})
    with pytest.raises(UserError, match=r"did you mean '(method\.)?offset_ratio'"):
        made(options={"offset_ration": 0.1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset_ratio": 1.1},
        {"offset_bits": 1},
        {"offset_bits": 9},
        {"offset_steps": "half"},
        {"offset_learning_rate": 0},
    ],
    ids=str,
)
def test_options_have_bounds(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OffsetConfig.model_validate(wrong)
