"""DDTB's quantisers, calibration, weights and convolutions against the released code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_vectors import Golden, same
from objectives import float_network, objective
from torch.nn import functional

from srquant.methods.ddtb import DDTB, GatedBoundsQuantizer
from srquant.quantizers.weights import AsymmetricWeights, SymmetricWeights, WeightQuantizer

BOUNDS = ("generic", "relu0", "symmetric10", "pos_lower", "neg_upper", "tiny", "big", "crossed", "equalish")


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bounds(shared: Path, bits: int, name: str):
    case = Golden(shared / "golden" / "act_static.npz", f"b{bits}_{name}_")
    quantizer = GatedBoundsQuantizer(bits, 6, gate=None, percentile=None, grid="official")
    with torch.no_grad():
        quantizer.upper.copy_(case["u"])
        quantizer.lower.copy_(case["l"])
    x = case["x"].requires_grad_()
    out = quantizer(x)
    out.backward(case["g"])
    tolerance = 1e-3 if name == "equalish" else 1e-5  # u - l loses three digits there
    same(out, case["out"])
    same(x.grad, case["gx"])
    same(quantizer.upper.grad, case["gu"], tolerance)
    same(quantizer.lower.grad, case["gl"], tolerance)
    assert len(out.detach().unique()) == int(case["levels"])


@pytest.mark.parametrize("name", ["M99", "M95", "relu"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_official_calibration(shared: Path, bits: int, name: str):
    case = Golden(shared / "golden" / "act_calibration.npz", f"b{bits}_{name}_")
    options = {"calibration": "official", "grid": "official", "percentile": 95 if name == "M95" else 99, "gate": "none"}
    made = objective("ddtb", float_network("edsr"), options, bits=bits)
    assert isinstance(made, DDTB)
    quantizer = next(iter(made.low_bit_quantizers().values())).train()
    out = quantizer(case["x"])
    same(quantizer.upper, case["u_after"])
    same(quantizer.lower, case["l_after"])
    same(out, case["out"])


def quantizer_of(kind: str, bits: int) -> WeightQuantizer:
    if kind == "symmax":
        return SymmetricWeights(bits)
    return (
        AsymmetricWeights(bits, grid="official")
        if kind == "asym99"
        else AsymmetricWeights(bits, percentile=100, grid="official")
    )


@pytest.mark.parametrize("kind", ["symmax", "asym99", "asymminmax"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights(shared: Path, bits: int, kind: str):
    case = Golden(shared / "golden" / "weight.npz", f"k{bits}_{kind}_")
    weight = case["w"].requires_grad_()
    rounded, _ = quantizer_of(kind, bits)(weight)
    rounded.backward(case["g"])
    same(rounded, case["out"])
    same(weight.grad, case["gw"])


def test_weights_of_a_whole_layer(shared: Path):
    case = Golden(shared / "golden" / "weight.npz", "k2_64_asym99_")
    weight = case["w"].requires_grad_()
    rounded, _ = AsymmetricWeights(2, grid="official")(weight)
    rounded.backward(case["g"])
    same(rounded, case["out"])
    same(weight.grad, case["gw"])


@pytest.mark.parametrize("kind", ["symmax", "asym99", "asymminmax"])
@pytest.mark.parametrize("bits", [2, 4])
def test_convolutions(shared: Path, bits: int, kind: str):
    case = Golden(shared / "golden" / "conv.npz", f"k{bits}_{kind}_")
    x, weight, bias = (case[name].requires_grad_() for name in ("x", "w", "b"))
    out = functional.conv2d(x, quantizer_of(kind, bits)(weight)[0], bias, padding=1)
    out.backward(case["g"])
    same(out, case["out"])
    same(x.grad, case["gx"])
    same(weight.grad, case["gw"])
    same(bias.grad, case["gb"])
