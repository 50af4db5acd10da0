from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives import batch, float_network, objective, total

from srquant.errors import UserError
from srquant.methods.averaged import AveragedBounds
from srquant.methods.odm import ODM
from srquant.quantizers.clipped_weights import ClippedWeights
from srquant.quantizers.deployment import deploy
from srquant.quantizers.weights import SymmetricWeights


def odm(name: str = "edsr", bits: int = 2, **options: Any) -> ODM:
    made = objective("odm", float_network(name), options, bits=bits, placement="strict", teacher=False)
    assert isinstance(made, ODM)
    return made


def low_bit(made: ODM) -> list[AveragedBounds]:
    return [q for q in made.network.activation_quantizers().values() if isinstance(q, AveragedBounds)]


def clips(made: ODM) -> list[ClippedWeights]:
    return [module for module in made.network.modules() if isinstance(module, ClippedWeights)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("gradient", ["official", "indicator"])
def test_the_official_grid_is_the_formula(bits: int, gradient: Any):
    quantizer = AveragedBounds(bits, percentile=99.0, grid="official", gradient=gradient)
    values = torch.linspace(-3, 4, 3010).view(1, 1, 70, 43).requires_grad_()
    lower, upper = (torch.tensor([end], requires_grad=True) for end in (-1.3, 2.2))
    grad = torch.randn(1, 1, 70, 43)
    out = quantizer.round(values, lower, upper)
    out.backward(grad)
    n = 2**bits - 1
    levels = torch.linspace(-1.3, 2.2, n + 1)
    assert torch.allclose(out.detach().unique(), levels, atol=1e-5)
    x = values.detach()
    clipped = x.clamp(-1.3, 2.2)
    rest = (out.detach() - clipped) / 3.5 if gradient == "official" else torch.zeros_like(x)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, grad * ((x > -1.3) & (x < 2.2)))
    assert lower.grad is not None
    assert upper.grad is not None
    torch.testing.assert_close(upper.grad, (grad * ((x > 2.2).float() + rest)).sum().reshape(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lower.grad, (grad * ((x < -1.3).float() - rest)).sum().reshape(1), rtol=1e-4, atol=1e-4)


def test_the_bounds_start_at_the_average_percentiles_of_the_float_network():
    made = odm(calibration_batches=3)
    plain = odm()
    seen: dict[str, list[torch.Tensor]] = {}
    quantizers = made.network.activation_quantizers()
    for name, quantizer in quantizers.items():
        if isinstance(quantizer, AveragedBounds):
            quantizer.register_forward_hook(
                lambda _, inputs, output, name=name: seen.setdefault(name, []).append(inputs[0])
            )
    made.start_epoch(1)
    for seed in range(3):
        assert not made.learns(1)
        assert not made.network.training
        with torch.no_grad():
            parts = made(*batch(seed))
            low, high = batch(seed)
            for module in plain.network.modules():
                if hasattr(module, "flags"):
                    module.flags["passes"] = True  # pyright: ignore
            plain.network.eval()
            torch.testing.assert_close(parts["l1"], (plain.network(low) - high).abs().mean())
        assert set(parts) == {"l1"}
    assert made.learns(1)
    assert made.network.training
    for name, inputs in seen.items():
        quantizer = quantizers[name]
        assert isinstance(quantizer, AveragedBounds)
        for bound, share in ((quantizer.lower, 0.01), (quantizer.upper, 0.99)):
            ends = [torch.quantile(values.flatten(), share) for values in inputs]
            torch.testing.assert_close(bound.detach(), torch.stack(ends).mean().reshape(1), rtol=1e-5, atol=1e-5)
    before = [quantizer.lower.detach().clone() for quantizer in low_bit(made)]
    parts = made(*batch(9))
    assert set(parts) == {"l1", "regulariser"}
    assert all(torch.equal(q.lower.detach(), b) for q, b in zip(low_bit(made), before, strict=True))


def test_a_short_first_epoch_ends_the_statistics():
    made = odm()
    assert made.config.calibration_batches == 100
    made.start_epoch(1)
    made(*batch())
    assert not made.learns(1)
    assert not made.is_final(1)
    assert made.learns(2)
    made.start_epoch(2)
    assert made.network.training
    assert set(made(*batch())) == {"l1", "regulariser"}


def test_without_calibration_the_first_batch_sets_the_bounds():
    made = odm(calibration_batches=0)
    assert made.learns(1)
    made.start_epoch(1)
    made(*batch())
    assert all(bool(quantizer.initialised) for quantizer in low_bit(made))


def test_the_state_goes_on_inside_the_statistics():
    made, other = odm(calibration_batches=4), odm(calibration_batches=4)
    made.start_epoch(1)
    for seed in range(4):
        with torch.no_grad():
            made(*batch(seed))
        if seed == 1:
            other.load_state_dict(made.state_dict())
            other.network.eval()
    for seed in (2, 3):
        with torch.no_grad():
            other(*batch(seed))
    assert other.learns(1)
    for one, two in zip(low_bit(made), low_bit(other), strict=True):
        assert torch.equal(one.lower, two.lower)
        assert torch.equal(one.upper, two.upper)
    assert other.network.training


def test_ranges_learn_ten_times_as_fast_unless_told_otherwise():
    def rates(**options: Any) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in odm(**options).parameter_groups()}

    assert rates() == {
        "network": 1e-4,
        "bounds": pytest.approx(1e-3),
        "rest bounds": pytest.approx(1e-3 * 3 / 255),
        "clips": pytest.approx(1e-3),
    }
    told = rates(bounds_learning_rate=5e-3, clip_learning_rate=1e-4)
    assert (told["bounds"], told["clips"]) == (5e-3, 1e-4)
    assert odm().describe()["bounds_learning_rate"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("clipping", "trained"), [("corrected", "gamma"), ("learned", "trained_clip"), ("percentile", ""), ("max", "")]
)
def test_the_ablation_of_weight_clipping(clipping: str, trained: str):
    made = odm(weight_clipping=clipping)
    assert clips(made)
    for quantizer in clips(made):
        assert [name for name, _ in quantizer.named_parameters()] == ([trained] if trained else [])
    group = [g for g in made.parameter_groups() if g["name"] == "clips"]
    assert bool(group) == bool(trained)
    layer = next(c for c in made.network.convolutions().values() if c.low_bit)
    quantizer = clips(made)[0]
    largest = layer.weight.detach().abs().max()
    assert (float(quantizer.clip(layer.weight).detach()) == float(largest)) == (clipping == "max")


def test_eight_bit_weights_are_symmetric():
    made = odm(bits=8)
    assert not clips(made)
    assert any(isinstance(m, SymmetricWeights) and not m.per_channel for m in made.network.modules())


def test_the_gate_off_leaves_the_regulariser_out():
    made = odm(gate="off", calibration_batches=0)
    made.start_epoch(1)
    assert set(made(*batch())) == {"l1"}
    assert not made.apart


def test_version_one_chooses_its_weight_once_and_keeps_it():
    options = {
        "regulariser": "variance",
        "regulariser_share": 0.05,
        "gate": "sign",
        "granularity": "element",
        "weight_clipping": "max",
        "calibration_batches": 0,
    }
    made, other = odm(**options), odm(**options)
    begun_with = float(made.regulariser_weight)
    made.start_epoch(1)
    total(made(*batch())).backward()
    weight = float(made.regulariser_weight)
    assert weight != begun_with
    assert made.flags["is_weighted"]
    made(*batch(5))
    assert float(made.regulariser_weight) == weight
    other.load_state_dict(made.state_dict())
    other(*batch(7))
    assert float(other.regulariser_weight) == weight


def test_the_official_grid_is_not_deployed():
    made = odm(grid="official", calibration_batches=0)
    made.start_epoch(1)
    made(*batch())
    with pytest.raises(UserError, match=r"method\.grid = 'integer'"):
        deploy(made.eval().network)


def test_it_can_learn_from_a_teacher():
    made = objective("odm", float_network("edsr"), {"skt_weight": 10.0, "calibration_batches": 0})
    made.start_epoch(1)
    assert set(made(*batch())) == {"l1", "skt", "regulariser"}
