from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hand_graphs import ANY, EXACT, convolution, graph, random, single_operations
from hypothesis import given
from hypothesis import strategies as st
from small_quantized import float_network, noise
from torch.nn import functional

from srquant.integer import graph as ops
from srquant.integer import reference
from srquant.integer.graph import IntegerGraph, Tensor
from srquant.integer.program_lowering import program_of
from srquant.networks.layers import FloatLayer
from srquant.quantizers.grid import IMAGE_GRID, Grid


@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([1, 3, 5, 9]),
    st.sampled_from([1, 2]),
    st.integers(0, 255),
    st.integers(0, 99),
)
def test_accumulators_are_exact(height: int, width: int, size: int, groups: int, zero_point: int, seed: int) -> None:
    op = convolution("y", "x", 4, 6, size=size, groups=groups, seed=seed)
    codes = random(seed).integers(0, 256, (4, height, width), dtype=np.uint8)
    found = reference.accumulate(op, codes, zero_point)
    centred = torch.from_numpy(codes.astype(np.int64) - zero_point)[None]
    expected = functional.conv2d(
        centred,
        torch.from_numpy(op.weight.astype(np.int64)),
        torch.from_numpy(op.bias.astype(np.int64)),
        padding=size // 2,
        groups=groups,
    )[0].numpy()
    assert np.array_equal(found, expected)


def one_pixel(codes: list[int]) -> np.ndarray:
    return np.array(codes, np.uint8).reshape(1, 1, 3)


def test_a_convolution_by_hand() -> None:
    op = ops.Convolution(
        "y",
        "x",
        weight=np.diag([10, 20, -10]).astype(np.int8)[:, :, None, None],
        bias=np.array([5, 0, 0], np.int32),
        weight_scale=np.array([0.1, 0.05, 0.1], np.float32),
        padding=0,
        groups=1,
        relu=False,
    )
    y = Tensor("y", 3, 1, Grid(2.0, 100, 255))
    # real values 10, 20, 30 by weights 1, 1, -1 and a bias of 0.5: 10.5, 20, -30
    assert reference.run(graph([op], [y]), one_pixel([10, 20, 30])).ravel().tolist() == [105, 110, 85]
    relu = replace(op, relu=True)
    assert reference.run(graph([relu], [y]), one_pixel([10, 20, 30])).ravel().tolist() == [105, 110, 100]


def test_codes_saturate_at_the_grid() -> None:
    weight = np.array([127, -127, 127], np.int8)
    op = ops.Convolution(
        "y", "x", np.diag(weight)[:, :, None, None], np.zeros(3, np.int32), np.ones(3, np.float32), 0, 1, relu=False
    )
    for grid, ends in ((IMAGE_GRID, [255, 0, 0]), (Grid(1.0, 4, 15), [15, 0, 4])):
        found = reference.run(graph([op], [Tensor("y", 3, 1, grid)]), one_pixel([255, 255, 0]))
        assert found.ravel().tolist() == ends


def test_an_addition_by_hand() -> None:
    operations: list[ops.Operation] = [ops.Requantize("h", "x"), ops.Add("y", "h", "x")]
    tensors = [Tensor("h", 3, 1, Grid(2.0, 10, 255)), Tensor("y", 3, 1, Grid(4.0, 1, 255))]
    # 8 + 8 = 16 -> 4 + 1; 101 is held as 100: (100 + 101) / 4 = 50.25; 255 as 256: 511 / 4 = 127.75
    assert reference.run(graph(operations, tensors), one_pixel([8, 101, 255])).ravel().tolist() == [5, 51, 129]


def test_ties_are_rounded_to_even_before_the_zero_point() -> None:
    y = Tensor("y", 3, 1, Grid(2.0, 3, 255))
    found = reference.run(graph([ops.Requantize("y", "x")], [y]), one_pixel([1, 3, 5]))
    assert found.ravel().tolist() == [0 + 3, 2 + 3, 2 + 3]


def test_leaky_relu_and_prelu_by_hand() -> None:
    shifted = Grid(1.0, 100, 255)
    operations: list[ops.Operation] = [ops.LeakyRelu("y", "x", np.array([0.5, 0.1, 2.0], np.float32))]
    y = Tensor("y", 3, 1, shifted)
    built = graph(operations, [y], picture=shifted)
    assert reference.run(built, one_pixel([80, 80, 80])).ravel().tolist() == [90, 98, 60]
    assert reference.run(built, one_pixel([120, 100, 255])).ravel().tolist() == [120, 100, 255]
    shared = graph([ops.LeakyRelu("y", "x", np.array([0.5], np.float32))], [y], picture=shifted)
    assert reference.run(shared, one_pixel([80, 90, 130])).ravel().tolist() == [90, 95, 130]


def test_moves_by_hand() -> None:
    picture = noise(3, 4)
    chw = picture.transpose(2, 0, 1)
    repeat = single_operations(EXACT)["repeat"]
    assert np.array_equal(reference.run(repeat, picture), picture.repeat(2, 0).repeat(2, 1))
    values = {"x": chw}
    pad = ops.Pad("p", "x", 2, 77)
    padded = reference.compute(repeat, pad, values)
    assert padded.shape == (3, 7, 8)
    assert np.array_equal(padded[:, 2:-2, 2:-2], chw)
    assert (padded[:, :2] == 77).all()
    assert (padded[:, :, -2:] == 77).all()
    cut = reference.compute(repeat, ops.SliceChannels("s", "x", 1, 3), values)
    assert np.array_equal(cut, chw[1:3])
    joined = reference.compute(repeat, ops.Concatenate("c", ("x", "x")), values)
    assert np.array_equal(joined, np.concatenate([chw, chw]))


@given(st.integers(1, 3), st.sampled_from([2, 3, 4]), st.integers(0, 99))
def test_the_shuffle_is_that_of_torch_and_its_other_order_a_permutation(channels: int, factor: int, seed: int) -> None:
    codes = random(seed).integers(0, 256, (channels * factor**2, 2, 3), dtype=np.uint8)
    built = single_operations(EXACT)["shuffle"]
    expected = functional.pixel_shuffle(torch.from_numpy(codes), factor).numpy()
    assert np.array_equal(reference.compute(built, ops.PixelShuffle("y", "x", factor), {"x": codes}), expected)
    order = np.arange(len(codes)).reshape(channels, factor**2).T.ravel()
    other = ops.PixelShuffle("y", "x", factor, blocks_first=True)
    assert np.array_equal(reference.compute(built, other, {"x": codes[order]}), expected)


def test_the_attention_is_that_of_the_network() -> None:
    layer = float_network("imdn_x2").get_submodule("IMDB1.cca")
    assert isinstance(layer, FloatLayer)
    codes = random(3).integers(0, 256, (8, 6, 5), dtype=np.uint8)
    grid, target = Grid(0.04, 90, 255), Grid(1 / 256, 0, 255)
    tensors = {"x": Tensor("x", 8, 1, grid), "a": Tensor("a", 8, 1, target)}
    built = IntegerGraph(float_network("imdn_x2").info, None, "x", "a", tensors, (), {})
    found = reference.compute(built, ops.FloatProgram("a", "x", program_of("cca", layer)), {"x": codes})
    with torch.no_grad():
        expected = layer(torch.from_numpy((codes.astype(np.float32) - 90) * 0.04)[None])[0]
    assert found.shape == (8, 1, 1)
    assert np.abs(found / 256 - expected.numpy()).max() <= 0.5001 / 256


@pytest.mark.parametrize("grids", [EXACT, ANY], ids=["exact", "any"])
def test_hand_made_graphs_use_their_codes(grids: tuple[Grid, Grid, Grid]) -> None:
    """They are the input of the engines' tests: they must not all be saturated."""
    for name, built in single_operations(grids).items():
        found = reference.run(built, noise(17, 19))
        bits = built.tensors[built.output].grid.bits
        assert len(np.unique(found)) > (30 if bits == 8 else 3 if bits == 4 else 2), name
        assert found.shape == (17 * built.info.scale, 19 * built.info.scale, 3)


def test_values_are_let_go_when_nothing_reads_them_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    compute = reference.compute

    def watch(built: IntegerGraph, operation: ops.Operation, values: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal most
        most = max(most, len(values))
        return compute(built, operation, values)

    monkeypatch.setattr(reference, "compute", watch)
    names = ["x", *(f"t{i}" for i in range(9))]
    operations = [ops.Requantize(after, before) for before, after in pairwise(names)]
    tensors = [Tensor(name, 3, 1, IMAGE_GRID) for name in names[1:]]
    picture = noise(2, 2)
    assert np.array_equal(reference.run(graph([*operations], tensors), picture), picture)
    assert most == 1
