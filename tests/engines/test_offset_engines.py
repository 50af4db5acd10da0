"""Networks with offsets on every engine, and what the offsets cost there."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from small_offsets import odm_network, offset_network, with_exact_scales
from small_quantized import noise
from small_trained import trained_network

from srquant.engines import Engine, open_engine
from srquant.integer import graph as ops
from srquant.integer import lower, reference
from srquant.integer.graph import IntegerGraph
from srquant.integer.litert import to_litert
from srquant.integer.litert_file import read_model, schema
from srquant.integer.litert_kernels import unequal
from srquant.integer.litert_rewrites import prepare
from srquant.integer.onnx import to_onnx
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.deployment import deploy

KINDS = {"shift": (True, False), "scale": (False, True), "both": (True, True)}
KEYS = ("edsr_x2", "edsr_official_x3", "abpn_x3", "xlsr_x3", "rdn_x2")
TRAINED = {f"{key} by ODM": key for key in ("edsr_x2", "rdn_x2", "srresnet_x4")}
SIZES = [(17, 23), (1, 1), (1, 9), (7, 2)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def network(key: str, bits: int, kind: str) -> QuantizedNetwork:
    if key in TRAINED:
        return deploy(odm_network(TRAINED[key], bits, kind))
    if kind == "none":
        return deploy(trained_network(key, bits))
    shifts, scales = KINDS[kind]
    return deploy(offset_network(key, bits, shifts=shifts, scales=scales))


@cache
def graph(key: str, bits: int, kind: str) -> IntegerGraph:
    return lower(network(key, bits, kind))


@pytest.mark.parametrize("engine", ["onnxruntime", "litert", "torch", "openvino", "simulate"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", KEYS)
def test_engines_agree_on_offsets(key: str, kind: str, bits: int, engine: str) -> None:
    if engine == "litert":
        pytest.importorskip("ai_edge_litert")
        without = unequal(prepare(graph(key, bits, "none")))
        assert len(unequal(prepare(graph(key, bits, kind)))) <= len(without)
    check_agreement(open_engine(network(key, bits, kind), engine, threads=1), graph(key, bits, kind))


def check_agreement(runner: Engine, made: IntegerGraph) -> None:
    """ONNX Runtime and LiteRT are the reference, the simulation a level off at most.

    The others are a level off at most in an operation (`test_single_operations`), which a few low-bit tensors later are
    some levels in a few pixels of so small a picture, and nothing in a score.
    """
    exact, random = runner.name in ("onnxruntime", "litert"), np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        picture = noise(*size, seed=i)
        found, wanted = runner.run(picture).astype(int), reference.run(made, picture).astype(int)
        difference = np.abs(found - wanted)
        assert difference.max() <= (0 if exact else 1 if runner.name == "simulate" else 4)
        assert (difference > 0).mean() <= 0.02
        truth = wanted + random.normal(0, 8, wanted.shape)  # a score of 30 dB
        scores = [10 * np.log10(255**2 / np.square(one - truth).mean()) for one in (found, wanted)]
        assert abs(scores[0] - scores[1]) <= 0.01


@pytest.mark.parametrize("engine", ["onnxruntime", "torch", "openvino", "simulate"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("key", KEYS)
def test_engines_are_the_reference_where_scales_are_exact(key: str, bits: int, engine: str) -> None:
    exact = with_exact_scales(deploy(offset_network(key, bits)))
    made, runner = lower(exact), open_engine(exact, engine, threads=1)
    assert made.channel_limits()
    for i, size in enumerate(SIZES):
        picture = noise(*size, seed=i)
        wanted = reference.run(made, picture)
        assert size == (1, 1) or wanted.std() > 1
        assert np.array_equal(runner.run(picture), wanted)


@pytest.mark.parametrize("engine", ["onnxruntime", "litert", "torch", "openvino", "simulate"])
def test_engines_agree_on_offsets_of_four_bits(engine: str) -> None:
    if engine == "litert":
        pytest.importorskip("ai_edge_litert")
    trained = offset_network("edsr_x2", 2, offset_bits=4)
    deployed = deploy(trained)
    made, runner = lower(deployed), open_engine(deployed, engine, threads=1)
    assert made.channel_limits()
    check_agreement(runner, made)
    for i, size in enumerate(SIZES):
        picture = noise(*size, seed=i)
        with torch.inference_mode():
            simulated = trained(torch.from_numpy(picture).permute(2, 0, 1)[None].float())[0].clamp(0, 255).round()
        assert np.abs(reference.run(made, picture) - simulated.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("key", KEYS)
def test_nothing_of_offsets_is_left_in_float(key: str, bits: int) -> None:
    without = network(key, bits, "none")
    for engine in ("onnxruntime", "openvino", "torch"):
        left = open_engine(network(key, bits, "both"), engine).left_in_float()
        assert len(left) <= len(open_engine(without, engine).left_in_float())


def onnx_kinds(made: IntegerGraph) -> Counter[str]:
    """Nodes that compute when the model runs: constants are folded, Q and DQ belong to their neighbours."""
    return Counter(n.op_type for n in to_onnx(made).graph.node if n.op_type != "DequantizeLinear")


def litert_kinds(made: IntegerGraph) -> Counter[str]:
    model = read_model(to_litert(made, 8, 8, allow_float=True))
    names = {number: name for name, number in vars(schema().BuiltinOperator).items() if isinstance(number, int)}
    return Counter(names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("key", [*KEYS, *TRAINED])
def test_scales_cost_nothing(key: str, bits: int) -> None:
    """As many operations of the same kinds: a requantisation with factors is a depthwise convolution."""
    made, without = graph(key, bits, "scale"), graph(key, bits, "none")
    assert made.channel_limits() == {}
    assert len(made.operations) == len(without.operations)
    again = [o.output for o in without.operations if isinstance(o, ops.Requantize)]
    for operation, other in zip(made.operations, without.operations, strict=True):
        scaled = isinstance(operation, ops.Convolution) and other.output in again
        assert type(operation) is type(other) or scaled
    pytest.importorskip("ai_edge_litert")
    assert litert_kinds(made) == litert_kinds(without)
    found, wanted = onnx_kinds(made), onnx_kinds(without)
    found["Conv"] -= sum(isinstance(o, ops.Convolution) for o in made.operations if o.output in again)
    assert found == wanted


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("key", [*KEYS, *TRAINED])
def test_shifts_cost_the_limits_that_are_told(key: str, bits: int) -> None:
    made, without = graph(key, bits, "shift"), graph(key, bits, "none")
    limits = made.channel_limits()
    assert limits
    assert set(limits.values()) <= {1, 2}
    rest = [type(o) for o in made.operations if not isinstance(o, ops.ChannelClip)]
    assert rest == [type(o) for o in without.operations]
    lowest = sum(count == 2 for count in limits.values())
    found, wanted = onnx_kinds(made), onnx_kinds(without)
    assert found.pop("Min") == len(limits)
    assert found.pop("Max", 0) == lowest
    assert wanted["Clip"] - found["Clip"] == len(limits)  # one limit for all channels each
    assert found - wanted == Counter()
    pytest.importorskip("ai_edge_litert")
    found, wanted = litert_kinds(made), litert_kinds(without)
    assert found["MINIMUM"] - wanted["MINIMUM"] == len(limits)
    assert found["MAXIMUM"] <= wanted["MAXIMUM"] + lowest
    del found["MINIMUM"], found["MAXIMUM"]
    del wanted["MINIMUM"], wanted["MAXIMUM"]
    assert found == wanted
