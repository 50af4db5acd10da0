from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_quantized import CONFIGS, build, calibrated, float_network

from srquant.config import QuantizationConfig
from srquant.integer import graph as ops
from srquant.integer import lower, reference
from srquant.integer.graph import IntegerGraph, Tensor
from srquant.networks.info import NetworkInfo
from srquant.quantizers.agreement import (
    TAKEN,
    Grids,
    Kind,
    add_reference,
    add_xnnpack,
    agree,
    agreeing_grid,
    multiply_reference,
    multiply_xnnpack,
)
from srquant.quantizers.grid import IMAGE_GRID, Grid

SCALES = st.floats(2.0**-7, 3, width=32)
GRIDS = st.builds(Grid, SCALES, st.integers(0, 255), st.sampled_from([3, 15, 255]))
TIES = (Grid(0.5, 128, 255), Grid(1.0, 0, 255), Grid(1.0, 0, 255))
"""Half of all sums lie on a tie."""


def pairs(grids: Grids) -> tuple[np.ndarray, np.ndarray]:
    codes = (np.arange(grid.maximum_code + 1, dtype=np.uint8) for grid in grids[:2])
    left, right = np.meshgrid(*codes, indexing="ij")
    return left, right


def by_reference(kind: Kind, grids: Grids) -> np.ndarray:
    """The codes of all pairs by the executor itself."""
    names = ("l", "r", "y")
    tensors = {name: Tensor(name, 1, 1, grid) for name, grid in zip(names, grids, strict=True)}
    op = ops.Add("y", "l", "r") if kind == "add" else ops.Multiply("y", "l", "r")
    info = NetworkInfo(name="edsr", scale=1, peak=255.0)
    left, right = pairs(grids)
    values = {"l": left[None], "r": right[None]}
    return reference.compute(IntegerGraph(info, 0, "l", "y", tensors, (op,), {}), op, values)[0]


@given(GRIDS, GRIDS, GRIDS)
@settings(max_examples=40, deadline=None)
def test_the_reference_is_the_executor_s(one: Grid, two: Grid, target: Grid) -> None:
    grids = one, two, target
    assert np.array_equal(add_reference(*pairs(grids), grids), by_reference("add", grids))
    assert np.array_equal(multiply_reference(*pairs(grids), grids), by_reference("multiply", grids))


def test_ties_are_rounded_up_by_the_one_and_to_even_by_the_other() -> None:
    left, right = np.array([129, 131], np.uint8), np.array([0, 0], np.uint8)
    assert add_xnnpack(left, right, TIES).tolist() == [1, 2]
    assert add_reference(left, right, TIES).tolist() == [0, 2]
    product = (Grid(1.0, 0, 255), Grid(0.5, 0, 255), Grid(1.0, 1, 255))
    assert multiply_xnnpack(right + 1, right + 1, product).tolist() == [1, 1]
    assert multiply_reference(right + 1, right + 1, product).tolist() == [2, 2]
    assert not agree("add", TIES)
    assert not agree("multiply", product)


@given(GRIDS, GRIDS, GRIDS)
@settings(max_examples=60, deadline=None)
def test_a_scale_beside_it_makes_an_addition_agree(one: Grid, two: Grid, target: Grid) -> None:
    grids = one, two, target
    found = agreeing_grid("add", grids)
    if found is None:  # saturated or tied as a whole, such as summands on the very grid of each other
        assert not agree("add", grids)
        return
    assert agree("add", (one, two, found))
    assert abs(found.scale / target.scale - 1) < 1e-4
    assert replace(found, scale=target.scale) == target
    assert np.float32(found.scale) == found.scale
    if agree("add", grids):
        assert found is target


def test_seldom_is_there_none() -> None:
    random = np.random.default_rng(0)
    missing = 0
    for _ in range(40):
        scales, zeros = np.float32(random.uniform(0.05, 2, 3)), random.integers(0, 256, 3)
        one, two, target = (Grid(float(s), int(z), 255) for s, z in zip(scales, zeros, strict=True))
        missing += agreeing_grid("add", (one, two, target)) is None
        missing += agreeing_grid("add", (one, IMAGE_GRID, IMAGE_GRID), 0) is None
        missing += agreeing_grid("multiply", (one, Grid(1 / 256, 0, 255), target)) is None
    assert missing == 0


def test_sums_on_ties_are_brought_to_agree_by_leaving_them_but_powers_of_two_stay() -> None:
    found = agreeing_grid("add", TIES, 0)
    assert found is not None
    assert found.scale != 0.5
    network = calibrated(float_network("edsr_x2"), QuantizationConfig(exact=True))
    assert all(float(np.log2(t.grid.scale)).is_integer() for t in lower(network).tensors.values())


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("placement", ["strict", "full"])
@pytest.mark.parametrize("key", CONFIGS)
def test_calibration_leaves_no_addition_that_differs(key: str, placement: str, bits: int) -> None:
    config = QuantizationConfig(weight_bits=bits, activation_bits=bits, placement=placement)
    graph = lower(calibrated(float_network(key), config))
    tried = 0
    for op in graph.operations:
        if isinstance(op, ops.Add | ops.Multiply):
            kind = "add" if isinstance(op, ops.Add) else "multiply"
            one, two, target = (graph.tensors[name].grid for name in (op.left, op.right, op.output))
            assert agree(kind, (one, two, target)), op.output
            tried += 1
    assert tried or key.startswith("xlsr")


@pytest.mark.parametrize("kind", ["add", "multiply"])
def test_grids_that_are_not_taken_never_agree(kind: Kind) -> None:
    least, too_large = TAKEN[kind]
    for ratio, taken in ((least, True), (least * 0.99, False), (too_large * 0.99, True), (too_large, False)):
        assert agree(kind, (Grid(ratio, 0, 255), Grid(ratio if kind == "add" else 1.0, 0, 255), IMAGE_GRID)) == taken


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("key", CONFIGS)
def test_silent_layers_get_grids_that_are_taken(key: str, exact: bool) -> None:
    """Whichever layer it is: its weights next to nothing, its bias far below zero."""
    for at in range(2):
        network = build(CONFIGS[key], key.split("_")[0])
        layer = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][at]
        with torch.no_grad():
            layer.weight *= 1e-9
            if layer.bias is not None:
                layer.bias.fill_(-1e-9)
        graph = lower(calibrated(network, QuantizationConfig(exact=exact)))
        for op in graph.operations:
            if isinstance(op, ops.Convolution):
                source, target = (graph.tensors[name].grid.scale for name in (op.input, op.output))
                assert source * op.weight_scale.max() / target < TAKEN["convolution"][1], op.output
            elif isinstance(op, ops.Add | ops.Multiply):
                one, two, target = (graph.tensors[name].grid.scale for name in (op.left, op.right, op.output))
                ratios = (one / target, two / target) if isinstance(op, ops.Add) else (one * two / target,)
                least, too_large = TAKEN["add" if isinstance(op, ops.Add) else "multiply"]
                assert all(least <= ratio < too_large for ratio in ratios), op.output
