from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_graphs import graph
from torch import nn

from srquant.engines import Description
from srquant.engines.integer_torch import IntegerTorchEngine
from srquant.engines.onnxruntime import OnnxRuntimeEngine
from srquant.engines.openvino import OpenVINOEngine
from srquant.integer import IntegerGraph, reference
from srquant.integer import graph as ops
from srquant.integer.functions import FUNCTIONS, is_robust, table_of
from srquant.integer.onnx import describe_graph, to_onnx
from srquant.networks.layers import CentredSigmoid
from srquant.quantizers.grid import Grid
from srquant.quantizers.insertion import ATTENTION_GRID, CENTRED_GRID
from srquant.quantizers.structure import LOOKUPS

MODULES: dict[str, nn.Module] = {
    "sigmoid": nn.Sigmoid(),
    "centred sigmoid": CentredSigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
}
TARGETS = {
    "sigmoid": ATTENTION_GRID,
    "centred sigmoid": CENTRED_GRID,
    "tanh": Grid(2.0**-7, 128, 255),
    "silu": Grid(float(np.float32(0.0437)), 7, 255),
}
SOURCES = [Grid(float(np.float32(scale)), zero, 255) for scale, zero in [(0.0611, 101), (0.0171, 140), (2.0**-4, 128)]]


def single(function: str, source: Grid) -> IntegerGraph:
    table = table_of(function, source, TARGETS[function])
    return graph([ops.Lookup("y", "x", table, function)], [ops.Tensor("y", 3, 1, TARGETS[function])], picture=source)


EVERY_CODE = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)


def test_every_function_of_the_networks_has_its_formula() -> None:
    assert set(FUNCTIONS) == set(LOOKUPS.values()) == set(MODULES)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("function", MODULES)
def test_a_table_is_the_rounded_function(function: str, source: Grid) -> None:
    target = TARGETS[function]
    values = (torch.arange(256.0, dtype=torch.float64) - source.zero_point) * source.scale
    wanted = MODULES[function](values) / target.scale + target.zero_point
    found = torch.from_numpy(table_of(function, source, target)).double()
    inside = (wanted > -0.5) & (wanted < 255.5)
    assert inside.sum() > 100
    assert (found - wanted)[inside].abs().max() <= 0.5001
    assert (found - wanted.clamp(0, 255)).abs().max() <= 0.5001


def test_a_factor_and_a_shift_are_part_of_the_table() -> None:
    source, target = SOURCES[0], Grid(1.0, 0, 255)
    values = np.tanh((np.arange(256) - 101) * source.scale) * 255 + 3
    assert np.array_equal(table_of("tanh", source, target, 255.0, 3.0), np.clip(np.rint(values), 0, 255))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("function", MODULES)
def test_every_engine_gives_the_table_of_all_codes(function: str, source: Grid, engine: str) -> None:
    built = single(function, source)
    wanted = reference.run(built, EVERY_CODE)
    assert len(np.unique(wanted)) > 40
    assert np.array_equal(wanted[..., 0].ravel(), table_of(function, source, TARGETS[function]))
    if engine == "torch":
        assert np.array_equal(IntegerTorchEngine(built).run(EVERY_CODE), wanted)
        return
    kind = OnnxRuntimeEngine if engine == "onnxruntime" else OpenVINOEngine
    runner = kind(to_onnx(built).SerializeToString(), Description.from_json(describe_graph(built)), 1)
    assert np.array_equal(runner.run(EVERY_CODE), wanted)


def test_onnx_holds_the_function_only_where_rounding_cannot_tell_it_from_the_table() -> None:
    def kinds(built: IntegerGraph) -> set[str]:
        return {node.op_type for node in to_onnx(built).graph.node}

    built = single("sigmoid", SOURCES[0])
    (lookup,) = built.operations
    assert isinstance(lookup, ops.Lookup)
    assert is_robust(lookup.table, "sigmoid", SOURCES[0], ATTENTION_GRID)
    assert kinds(built) >= {"Sigmoid", "QuantizeLinear"}
    assert not kinds(built) & {"Gather"}

    near_a_tie = Grid(float(np.float32(0.5)), 0, 255)  # SiLU of 22 is 22 in float32 and just below it in float64
    table = table_of("silu", near_a_tie, Grid(4.0, 0, 255))
    assert table[44] == 6
    assert not is_robust(table, "silu", near_a_tie, Grid(4.0, 0, 255))
    built = graph([ops.Lookup("y", "x", table, "silu")], [ops.Tensor("y", 3, 1, Grid(4.0, 0, 255))], picture=near_a_tie)
    assert kinds(built) >= {"Gather"}
    assert not kinds(built) & {"Sigmoid"}

    other = table_of("sigmoid", SOURCES[0], ATTENTION_GRID)[::-1].copy()
    assert not is_robust(other, "sigmoid", SOURCES[0], ATTENTION_GRID)
    assert not is_robust(other, "something else", SOURCES[0], ATTENTION_GRID)
