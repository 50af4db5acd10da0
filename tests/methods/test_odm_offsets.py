"""Shifts and scales of channels in training: who gets them, how they move, what is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objectives import batch, float_network, objective, total
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from srquant.config import TrainingConfig
from srquant.engines import open_engine
from srquant.errors import UserError
from srquant.integer import lower, reference
from srquant.methods.odm import ODM
from srquant.methods.offsets import ChannelStatistics, OffsetBounds, OffsetConfig
from srquant.quantizers.acceleration import use_kernel
from srquant.quantizers.deployment import deploy
from srquant.quantizers.offset_codes import factor_levels
from srquant.quantizers.straight_through import fake_quantize_between

OPTIONS = {"offsets": "both", "offset_ratio": 1.0, "calibration_batches": 3, "bounds_learning_rate": 0.05}


def made(name: str = "edsr", options: dict[str, Any] | None = None, bits: int = 4, placement: str = "strict") -> ODM:
    built = objective(
        "odm", float_network(name), {**OPTIONS, **(options or {})}, bits=bits, placement=placement, learning_rate=1e-3
    )
    assert isinstance(built, ODM)
    return built


def steps(trained: ODM, epochs: int = 2, count: int = 4, same: bool = False) -> list[float]:
    optimizer, losses = torch.optim.Adam(trained.parameter_groups()), list[float]()
    for epoch in range(1, epochs + 1):
        trained.start_epoch(epoch)
        for step in range(count):
            learns = trained.learns(epoch)
            with torch.set_grad_enabled(learns):
                loss = total(trained(*batch(0 if same else 10 * epoch + step)))
            if learns:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
    return losses


def low_bit(trained: ODM) -> dict[str, OffsetBounds]:
    quantizers = trained.network.activation_quantizers()
    return {name: q for name, q in quantizers.items() if isinstance(q, OffsetBounds)}


def features(seed: int = 0) -> Tensor:
    spread = torch.tensor([1.0, 3.0, 0.2]).view(1, -1, 1, 1)
    return torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * spread + 7 * spread


def test_statistics_are_those_of_all_batches_together():
    statistics, batches = ChannelStatistics(3), [features(seed) for seed in range(3)]
    for values in batches:
        statistics.see(values)
    whole = torch.cat(batches).double()
    mean, deviation = whole.mean((0, 2, 3)), whole.std((0, 2, 3), correction=0)
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.deviation(), deviation, rtol=1e-6, atol=0)
    spread = float(deviation.mean())
    assert statistics.mismatch_of_means() == pytest.approx(float(np.std(mean.numpy())) / spread)
    assert statistics.mismatch_of_deviations() == pytest.approx(float(np.std(deviation.numpy())) / spread)


def _see(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    statistics = ChannelStatistics(3)
    for seed in range(2):
        statistics.see(features(seed).chunk(2)[rank])
    torch.save(statistics.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_gather_the_same_statistics(tmp_path: Path):
    spawn(_see, (str(tmp_path),), nprocs=2)
    expected = ChannelStatistics(3)
    for seed in range(2):
        expected.see(features(seed))
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-6, atol=1e-9, msg=f"{rank}: {name}")


def test_the_tensors_that_differ_most_are_chosen():
    trained = made(options={"offset_ratio": 0.4})
    trained.start_epoch(1)
    with torch.no_grad():
        for step in range(3):
            assert not trained.learns(1)
            trained(*batch(step))
    assert trained.learns(1)
    quantizers = low_bit(trained)
    assert len(quantizers) == 5
    means = sorted(quantizers, key=lambda name: quantizers[name].statistics.mismatch_of_means())
    shifted = {name for name, q in quantizers.items() if q.offsets["shifts"]}
    assert shifted == set(means[-2:])
    can = [name for name in quantizers if name != "add_1"]
    deviations = sorted(can, key=lambda name: quantizers[name].statistics.mismatch_of_deviations())
    assert {name for name, q in quantizers.items() if q.offsets["scales"]} == set(deviations[-2:])


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
    assert all(q.shift.abs().max() > 0 for q in found)
    assert all(q.log_factors.abs().max() > 0 for q in found if q.offsets["scales"])


def test_scales_may_start_from_the_statistics():
    trained = made(options={"offset_start": "statistics"})
    steps(trained, epochs=1, count=3)
    scaled = [q for q in low_bit(trained).values() if q.offsets["scales"]]
    assert scaled
    for quantizer in scaled:
        deviation = quantizer.statistics.deviation()
        wanted = deviation.mean() / deviation.clamp(min=0.01 * deviation.mean())
        torch.testing.assert_close(quantizer.log_factors.exp().double(), wanted, rtol=1e-5, atol=0)
        assert not quantizer.initialised
    trained.start_epoch(2)
    trained(*batch(3))
    assert all(quantizer.initialised for quantizer in scaled)


def test_a_run_that_is_put_back_goes_on_with_the_same_offsets():
    trained = made(options={"offset_ratio": 0.4})
    steps(trained)
    other = made(options={"offset_ratio": 0.4})
    other.load_state_dict(trained.state_dict())
    other.start_epoch(3)
    trained.start_epoch(3)
    for one, two in zip(low_bit(trained).values(), low_bit(other).values(), strict=True):
        assert one.offsets["shifts"] == two.offsets["shifts"]
        assert torch.equal(one.shift, two.shift)
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
@pytest.mark.parametrize("name", ["edsr", "srresnet"])
def test_what_was_trained_is_deployed_and_runs_on_every_engine(name: str, bits: int, offset_bits: int | None):
    trained = made(name, {"offset_bits": offset_bits}, bits=bits)
    steps(trained, epochs=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for quantizer in low_bit(trained).values():
            width = quantizer.upper - quantizer.lower
            quantizer.shift.add_(0.5 * width * (torch.rand(quantizer.channels, generator=generator) - 0.5))
            quantizer.log_factors.add_(torch.rand(quantizer.channels, generator=generator) - 0.5)
    trained.eval()
    low = batch(50)[0].round()
    with torch.inference_mode():
        wanted, deployed = trained.network(low), deploy(trained.network)
        found = deployed(low)
    assert wanted.std() > 3
    assert (found - wanted).abs().mean() < (0.5 if name == "srresnet" else 0.1)
    picture = low[0].permute(1, 2, 0).numpy().astype(np.uint8)
    graph = lower(deployed)
    assert graph.channel_limits()
    truth = reference.run(graph, picture).astype(int)
    simulated = found[0].clamp(0, 255).round().permute(1, 2, 0).numpy()
    assert np.abs(truth - simulated).mean() < 0.1
    assert np.array_equal(open_engine(deployed, "onnxruntime").run(picture), truth)


def test_free_shifts_are_a_simulation():
    trained = made(options={"offset_steps": "free", "offsets": "shift"})
    steps(trained)
    quantizer = next(q for q in low_bit(trained).values() if q.offsets["shifts"])
    with torch.no_grad():
        quantizer.shift.uniform_(-1, 1)
        values = torch.randn(2, quantizer.channels, 4, 4)
        shift = quantizer.shift.view(1, -1, 1, 1)
        wanted = fake_quantize_between(values + shift, quantizer.lower, quantizer.upper, 4) - shift
        torch.testing.assert_close(quantizer.round(values, quantizer.lower, quantizer.upper), wanted)
    with pytest.raises(UserError, match="offset_steps = 'free', which no integers compute; train with 'whole'"):
        deploy(trained.network)


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
    with pytest.raises(UserError, match="calibration_batches above 0"):
        made(options={"calibration_batches": 0})
    with pytest.raises(UserError, match=r"did you mean '(method\.)?offset_ratio'"):
        made(options={"offset_ration": 0.1})


def test_options_have_bounds():
    for wrong in ({"offset_ratio": 1.1}, {"offset_bits": 1}, {"offset_bits": 9}, {"offset_steps": "half"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OffsetConfig.model_validate(wrong)
