from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_quantized import float_network, noise, tensor
from torch import Tensor, nn

from srquant.config import QuantizationConfig
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels, level_counts
from srquant.quantizers import QuantizedNetwork, load_artefact, save_artefact
from srquant.quantizers.artefact import METADATA_KEY, _digest
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.clipped_weights import ClippedWeights, clip_by_rule, round_between_clips
from srquant.quantizers.deployment import _batch_norms, deploy
from srquant.quantizers.folding import batch_norm_affine
from srquant.quantizers.weights import SymmetricWeights

BITS = [2, 3, 4, 7]


def paper_formula(weight: Tensor, clip: Tensor, bits: int) -> Tensor:
    """The quantiser by autograd, rounding straight through."""
    lower, upper = -clip, clip
    step = (upper - lower) / (2**bits - 1)
    place = (torch.maximum(torch.minimum(weight, upper), lower) - lower) / step
    return (place + (place.round() - place).detach()) * step + lower


@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients_are_those_of_the_formula(bits: int):
    torch.manual_seed(bits)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    grad = torch.randn_like(weight)
    results = []
    for compute in (round_between_clips, paper_formula):
        leaf, clip = weight.clone().requires_grad_(), torch.tensor([1.1], dtype=torch.float64, requires_grad=True)
        out = compute(leaf, clip, bits)
        out.backward(grad)
        results.append((out.detach(), leaf.grad, clip.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_levels_of_two_bits_are_the_papers():
    weight = torch.linspace(-2, 2, 1001)
    rounded = round_between_clips(weight, torch.tensor([0.9]), 2).unique()
    torch.testing.assert_close(rounded, torch.tensor([-0.9, -0.3, 0.3, 0.9]))


def test_the_indicator_gradient_counts_clipped_weights_alone():
    clip = torch.tensor([1.0], requires_grad=True)
    weight = torch.tensor([-3.0, -0.4, 0.2, 5.0], requires_grad=True)
    round_between_clips(weight, clip, 2, gradient="indicator").backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert clip.grad is not None
    assert clip.grad.tolist() == [999.0]
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 10.0, 100.0, 0.0]


@pytest.mark.parametrize("percentile", [99.0, 90.0, 100.0])
def test_rules_are_percentiles(percentile: float):
    weight = torch.randn(5, 7, 3, 3) + 0.2
    values = weight.numpy()
    expected = {
        "magnitude": np.percentile(np.abs(values), percentile),
        "signed": max(-np.percentile(values, 100 - percentile), np.percentile(values, percentile)),
        "max": np.abs(values).max(),
    }
    for rule, value in expected.items():
        found: Any = rule
        assert float(clip_by_rule(weight, found, percentile)) == pytest.approx(float(value), rel=1e-5)
    assert len({round(float(v), 4) for v in expected.values()}) == (1 if percentile == 100 else 3)


def test_unknown_words_name_the_nearest():
    word: Any = "magnitud"
    other: Any = "learnt"
    with pytest.raises(UserError, match="magnitude"):
        clip_by_rule(torch.ones(3), word)
    with pytest.raises(UserError, match="learned"):
        ClippedWeights(2, torch.ones(1, 1, 1, 1), clipping=other)


def test_a_corrected_clip_follows_the_weights_and_a_learned_one_does_not():
    weight = torch.randn(4, 3, 3, 3)
    corrected, rule, learned = (ClippedWeights(2, weight, clipping=how) for how in ("corrected", "rule", "learned"))
    assert corrected.gamma is not None
    with torch.no_grad():
        corrected.gamma.fill_(0.6)
    torch.testing.assert_close(corrected.clip(3 * weight), 1.8 * rule.clip(weight))
    torch.testing.assert_close(rule.clip(3 * weight), 3 * rule.clip(weight))
    torch.testing.assert_close(learned.clip(3 * weight), rule.clip(weight))
    trained = [[name for name, _ in q.named_parameters()] for q in (corrected, rule, learned)]
    assert trained == [["gamma"], [], ["trained_clip"]]


def test_a_gamma_below_zero_comes_back():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    quantizer = ClippedWeights(2, weight)
    assert quantizer.gamma is not None
    with torch.no_grad():
        quantizer.gamma.fill_(-0.1)
    rounded, step = quantizer(weight)
    assert bool((step > 0).all())
    (rounded - weight).square().sum().backward()
    assert quantizer.gamma.grad is not None
    assert float(quantizer.gamma.grad) < 0, "a larger clip lowers the loss"


def test_gamma_has_the_gradient_of_the_clip_times_the_rule():
    weight = torch.randn(4, 3, 3, 3)
    quantizer, grad = ClippedWeights(3, weight), torch.randn(4, 3, 3, 3)
    leaf = weight.clone().requires_grad_()
    quantizer(leaf)[0].backward(grad)
    clip = clip_by_rule(weight, "magnitude").requires_grad_()
    other = weight.clone().requires_grad_()
    paper_formula(other, clip, 3).backward(grad)
    assert quantizer.gamma is not None
    assert quantizer.gamma.grad is not None
    assert clip.grad is not None
    torch.testing.assert_close(quantizer.gamma.grad, clip.grad * clip.detach())
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("clipping", ["corrected", "rule", "learned"])
def test_weights_are_what_their_codes_say(bits: int, clipping: Any):
    weight = torch.randn(5, 3, 3, 3)
    weight[0, 0, 0, :2] = torch.tensor([-5.0, 5.0])
    quantizer = ClippedWeights(bits, weight, clipping=clipping)
    rounded, fine = quantizer(weight)
    codes = quantizer.codes(weight)
    packed = (codes.multiples.int() - codes.zero_points.view(-1, 1, 1, 1)) / codes.spacing
    assert torch.equal(packed, packed.round())
    assert (packed.min(), packed.max()) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    torch.testing.assert_close(codes.multiples.float() * codes.steps.view(-1, 1, 1, 1), rounded.detach())
    assert int(codes.multiples.int().abs().max()) * codes.expansion <= 127
    assert codes.expansion == 127 // (2**bits - 1)
    torch.testing.assert_close(fine, codes.steps[:1] / codes.expansion)


def test_negative_factors_flip_the_codes():
    codes = ClippedWeights(2, torch.ones(2, 1, 1, 1)).codes(torch.tensor([-1.0, 0.2]).view(2, 1, 1, 1))
    flipped = codes.scaled(torch.tensor([-2.0, 2.0]))
    assert flipped.multiples.flatten().tolist() == [3, 1]
    assert flipped.zero_points.tolist() == [1, 1]
    assert flipped.spacing == 2


def trained_network(key: str, bits: int) -> QuantizedNetwork:
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits)
    network = QuantizedNetwork(float_network(key), config, trainable=True)
    network.replace_quantizers(lambda _, old: BoundsQuantizer(old.bits, percentile=99.0 if old.low_bit else 100.0))
    for layer in network.convolutions().values():
        low = layer.low_bit and layer.bits < 8
        layer.weight_quantizer = (
            ClippedWeights(layer.bits, layer.weight) if low else SymmetricWeights(layer.bits, per_channel=True)
        )
    network.train()
    for seed in range(3):
        network(tensor(noise(20, 22, seed)))
    return network.eval()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("key", ["edsr_x2", "srresnet_shared_x2"])
def test_the_deployed_network_has_all_levels_and_survives_its_file(key: str, bits: int, tmp_path: Path):
    network = trained_network(key, bits)
    deployed = deploy(network)
    check_levels(deployed)
    low = {name for name, layer in deployed.convolutions().items() if layer.low_bit}
    counts = level_counts(deployed)
    assert max(counts[f"{name}.weight"] for name in low) == 2**bits
    norms = _batch_norms(network.graph)
    for name in low:
        codes, layer = deployed.convolutions()[name].codes(), network.convolutions()[name]
        assert set(codes.spacings.tolist()) == {2}
        assert layer.weight_quantizer is not None
        factors = batch_norm_affine(norms[name])[0].view(-1, 1, 1, 1) if name in norms else 1.0
        expected = layer.weight_quantizer(layer.weight)[0].detach() * factors
        torch.testing.assert_close(codes.real_weight(), expected, rtol=1e-5, atol=1e-7)
    picture = tensor(noise(16, 18, 9))
    with torch.inference_mode():
        # what normalisation adds is rounded when it is folded
        assert (deployed(picture) - network(picture)).abs().mean() < (1.5 if norms else 0.1)
        path = tmp_path / "a.safetensors"
        save_artefact(deployed, path)
        assert torch.equal(load_artefact(path)(picture), deployed(picture))


def test_a_channel_that_normalisation_switches_off_is_deployed_as_zero(tmp_path: Path):
    network = trained_network("srresnet_shared_x2", 2)
    norm = next(m for m in network.graph.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[1] = 1e-7
        norm.bias[1] = 3.0
    deployed = deploy(network)
    dead = [c for c in deployed.convolutions().values() if 1 in c.codes().spacings.tolist() and c.low_bit]
    assert len(dead) == 1
    assert not dead[0].codes().weight[1].any()
    assert dead[0].codes().spacings.tolist() == [2, 1, *[2] * (dead[0].out_channels - 2)]
    picture = tensor(noise(16, 18, 9))
    with torch.inference_mode():
        assert (deployed(picture) - network(picture)).abs().mean() < 0.5
    save_artefact(deployed, tmp_path / "a.safetensors")
    assert torch.equal(load_artefact(tmp_path / "a.safetensors")(picture), deployed(picture))


@pytest.mark.parametrize(("part", "value"), [("spacings", 3), ("spacings", 1), ("zero_points", 0), ("expansion", 127)])
def test_an_impossible_grid_of_weights_is_refused(part: str, value: int, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_artefact(deploy(trained_network("edsr_x2", 2)), path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()[METADATA_KEY])
    name = next(key for key in tensors if key.endswith("spacings") and int(tensors[key][0]) == 2)
    tensors[name.replace("spacings", part)].fill_(value)
    if (part, value) == ("spacings", 1):
        tensors[name.replace("spacings", "zero_points")].fill_(3)
    told["sha256"] = _digest(tensors)
    save_file(tensors, path, {METADATA_KEY: json.dumps(told)})
    with pytest.raises(UserError, match=r"the weight grid of '.*' is impossible"):
        load_artefact(path)
