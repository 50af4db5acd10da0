from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_quantized import CONFIGS, float_network, noise, tensor
from small_trained import trained_network
from torch import nn

from srquant.config import QuantizationConfig
from srquant.engines.reference import ReferenceEngine
from srquant.errors import UserError
from srquant.evaluation.levels import check_levels
from srquant.integer import lower
from srquant.quantizers import PLACEMENTS, QuantizedNetwork, load_artefact, save_artefact
from srquant.quantizers.bounds import BoundsQuantizer
from srquant.quantizers.deployment import deploy
from srquant.quantizers.weights import AsymmetricWeights, SymmetricWeights

PAIRS = [
    (key, name)
    for key in CONFIGS
    for name, placement in PLACEMENTS.items()
    if not placement.layouts or key.split("_")[0] in placement.layouts
]


def enlarge(network: QuantizedNetwork) -> np.ndarray:
    with torch.inference_mode():
        return network(tensor(noise(14, 16, seed=5))).round().numpy()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(one - other).mean(), 1e-9)))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("key", "placement"), PAIRS)
def test_the_deployed_network_computes_what_was_trained(key: str, placement: str, bits: int) -> None:
    trained = trained_network(key, bits, placement)
    deployed = deploy(trained)
    found, wanted = enlarge(deployed), enlarge(trained)
    assert wanted.std() > 5
    # Batch normalisation applied before or after the sum rounds differently: single codes flip, and spread.
    norms = any(isinstance(module, nn.BatchNorm2d) for module in trained.modules())
    assert psnr(found, wanted) > (35 if norms or bits == 2 else 45), psnr(found, wanted)
    check_levels(deployed)


@pytest.mark.parametrize("key", ["edsr_x2", "rdn_x2", "srresnet_x4"])
def test_the_integers_compute_what_was_trained(key: str, tmp_path: Path) -> None:
    trained = trained_network(key, 2, "ddtb")
    path = tmp_path / "trained.safetensors"
    save_artefact(deploy(trained), path)
    loaded = load_artefact(path)
    assert loaded.method == "a test's"
    integers = ReferenceEngine(lower(loaded)).run(noise(14, 16, seed=5))
    wanted = enlarge(trained)[0].transpose(1, 2, 0).clip(0, 255)
    assert psnr(integers.astype(np.float32), wanted) > 35
    weights = [op.weight for op in lower(loaded).operations if hasattr(op, "weight")]
    assert weights
    for weight, conv in zip(weights, loaded.convolutions().values(), strict=True):
        assert max(len(np.unique(channel)) for channel in weight) <= 2**conv.bits
        assert np.abs(weight.astype(int)).max() > 63  # expanded to fill int8


def test_batch_normalisation_of_negative_scale_flips_the_codes() -> None:
    trained = trained_network("srresnet_x4", 2, "ddtb")
    norm = trained.graph.get_submodule("body.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[:3] *= -1
    deployed = deploy(trained)
    assert psnr(enlarge(deployed), enlarge(trained)) > 35
    codes, plain = deployed.convolutions()["body.0.conv1"].codes(), trained.convolutions()["body.0.conv1"]
    assert plain.weight_quantizer is not None
    multiples = plain.weight_quantizer.codes(plain.weight).multiples
    assert torch.equal(codes.weight[:3], -multiples[:3])
    assert torch.equal(codes.weight[3:], multiples[3:])


def test_a_network_with_its_rest_in_float_cannot_be_deployed() -> None:
    config = QuantizationConfig(weight_bits=2, activation_bits=2, placement="ddtb", rest="float")
    network = QuantizedNetwork(float_network("edsr_x2"), config, trainable=True)
    with pytest.raises(UserError, match="rest = 'float' and cannot be deployed"):
        deploy(network)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("quantizer", [AsymmetricWeights, SymmetricWeights])
def test_weight_codes_are_the_rounded_weights(quantizer: type, bits: int) -> None:
    random = torch.Generator().manual_seed(bits)
    weight = torch.randn(6, 5, 3, 3, generator=random) * 0.1 + 0.02
    one = quantizer(bits)
    rounded, bias_step = one(weight)
    codes = one.codes(weight)
    real = codes.multiples * codes.steps.view(-1, 1, 1, 1)
    torch.testing.assert_close(real, rounded)
    torch.testing.assert_close(bias_step.expand(6), codes.steps / codes.expansion)
    assert len(torch.unique(codes.multiples)) <= 2**bits
    centred = codes.multiples - codes.zero_points.view(-1, 1, 1, 1)
    assert centred.min() >= -(2 ** (bits - 1))
    assert centred.max() < 2 ** (bits - 1)
    assert codes.multiples.abs().max() * codes.expansion <= 127


def test_a_dead_channel_keeps_its_bias() -> None:
    """Its step is all but nothing, and the bias would need a code beyond 32 bits."""
    trained = trained_network("edsr_x2", 2, "ddtb")
    layer = trained.convolutions()["tail.0.0"]
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight[3] = 0
        layer.bias[3] = 0.5
    deployed = deploy(trained).convolutions()["tail.0.0"]
    codes = deployed.codes()
    assert not codes.weight[3].any()
    assert codes.real_bias(deployed.input_scale)[3] == pytest.approx(0.5, rel=1e-5)


def test_normalisation_that_switches_a_channel_off_is_deployed() -> None:
    trained = trained_network("srresnet_x4", 4, "ddtb")
    norm = trained.graph.get_submodule("body.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[2] = 0
        norm.bias[2] = 0.5
    deployed = deploy(trained)
    layer = deployed.convolutions()["body.0.conv1"]
    assert not layer.codes().weight[2].any()
    assert layer.codes().real_bias(layer.input_scale)[2] == pytest.approx(0.5, rel=1e-5)
    assert psnr(enlarge(deployed), enlarge(trained)) > 40


def test_bounds_trained_on_the_official_grid_are_not_deployed() -> None:
    trained = trained_network("edsr_x2", 2, "ddtb")
    quantizer = next(q for q in trained.activation_quantizers().values() if isinstance(q, BoundsQuantizer))
    quantizer.grid_kind = "official"
    with pytest.raises(UserError, match=r"official grid.*method.grid = 'integer'"):
        deploy(trained)
