from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hand_graphs import ANY, convolution, graph
from hypothesis import given, settings
from hypothesis import strategies as st
from small_quantized import CONFIGS, noise, quantized_network

from srquant.integer import IntegerGraph, lower, reference
from srquant.integer import graph as ops
from srquant.integer.graph import Tensor
from srquant.integer.rewrites import blocks_first, optimize, pad_picture, sink_shuffle
from srquant.quantizers.grid import IMAGE_GRID, Grid

REWRITES: dict[str, Callable[[IntegerGraph], IntegerGraph]] = {
    "pad_picture": pad_picture,
    "sink_shuffle": sink_shuffle,
    "blocks_first": blocks_first,
    "optimize": optimize,
}
SIZES = [(7, 9), (1, 1), (1, 5), (4, 2)]


def kinds(built: IntegerGraph) -> list[str]:
    return [type(operation).__name__ for operation in built.operations]


def assert_same_pixels(one: IntegerGraph, two: IntegerGraph) -> None:
    for size in SIZES:
        picture = noise(*size, seed=2)
        wanted = reference.run(one, picture)
        assert len(np.unique(wanted)) > 1
        assert np.array_equal(reference.run(two, picture), wanted), size


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("key", CONFIGS)
def test_every_rewrite_keeps_every_pixel(key: str, bits: int, rewrite: str) -> None:
    built = lower(quantized_network(key, bits))
    assert_same_pixels(built, REWRITES[rewrite](built))


def test_pad_picture_makes_the_shift_of_the_input_a_pad() -> None:
    built = lower(quantized_network("edsr_x2"))
    code = built.tensors[built.input].grid.zero_point
    assert code > 0
    found = pad_picture(built)
    pad, conv = found.operations[:2]
    assert isinstance(pad, ops.Pad)
    assert (pad.code, pad.amount) == (code, 1)
    assert isinstance(conv, ops.Convolution)
    assert conv.padding == 0
    assert found.tensors[found.input].grid.zero_point == 0
    assert kinds(found)[1:] == kinds(built)
    assert pad_picture(found) is found, "there is nothing left to do"
    assert pad_picture(lower(quantized_network("rdn_x2"))).operations[0] is not pad


def test_pad_picture_keeps_convolutions_of_one_padding_on_one_pad() -> None:
    shifted = Grid(1.0, 100, 255)
    tensors = [Tensor(name, 3, 1, ANY[0]) for name in "abc"] + [Tensor("d", 3, 1, ANY[1]), Tensor("y", 3, 1, ANY[2])]
    operations: list[ops.Operation] = [
        convolution("a", "x", 3, 3, seed=1),
        convolution("b", "x", 3, 3, seed=2),
        convolution("c", "x", 3, 3, size=5, seed=3),
        ops.Add("d", "a", "b"),
        ops.Add("y", "d", "c"),
    ]
    built = graph(operations, tensors, picture=shifted)
    found = pad_picture(built)
    assert kinds(found).count("Pad") == 2
    assert_same_pixels(built, found)


def test_pad_picture_leaves_a_picture_that_something_else_reads() -> None:
    shifted = Grid(1.0, 100, 255)
    operations: list[ops.Operation] = [convolution("a", "x", 3, 3), ops.Add("y", "a", "x")]
    built = graph(operations, [Tensor("a", 3, 1, ANY[0]), Tensor("y", 3, 1, ANY[1])], picture=shifted)
    assert pad_picture(built) is built


def tail(channels: int, factor: int, size: int, outputs: int, seed: int = 0) -> IntegerGraph:
    """Convolution, shuffle, convolution of a kernel size; one colour more often than three."""
    first = convolution("h", "x", 3, channels * factor**2, seed=seed)
    last = convolution("y", "s", channels, outputs, size=size, scale=2.0 ** -(7 + size), seed=seed + 1)
    tensors = [
        Tensor("h", channels * factor**2, 1, ANY[0]),
        Tensor("s", channels, factor, ANY[0]),
        Tensor("y", outputs, factor, ANY[1]),
    ]
    return graph([first, ops.PixelShuffle("s", "h", factor), last], tensors, scale=factor)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.sampled_from([2, 3, 4]),
    st.sampled_from([1, 3, 5, 7, 9]),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_sink_shuffle_for_every_kernel_and_scale(
    channels: int, factor: int, size: int, outputs: int, seed: int
) -> None:
    built = tail(channels, factor, size, outputs, seed)
    found = sink_shuffle(built)
    if outputs * factor**2 <= 16:
        assert kinds(found) == ["Convolution", "Convolution", "PixelShuffle"]
        conv, shuffle = found.operations[1:]
        assert isinstance(conv, ops.Convolution)
        assert conv.weight.shape[0] == outputs * factor**2
        assert conv.input == "h"
        assert shuffle.output == found.output == "y"
        assert "s" not in found.tensors
    else:
        assert found is built
    picture = noise(3, 4, seed)
    assert np.array_equal(reference.run(found, picture), reference.run(built, picture))
    assert np.array_equal(reference.run(optimize(built), picture), reference.run(built, picture))


@pytest.mark.parametrize(
    ("size", "factor", "outputs"), [(3, 2, 3), (9, 2, 3), (3, 3, 1), (9, 3, 1), (3, 4, 1), (9, 4, 1)]
)
def test_sink_shuffle_fires_and_blocks_first_follows(size: int, factor: int, outputs: int) -> None:
    built = tail(2, factor, size, outputs)
    found = optimize(built)
    assert kinds(found) == ["Pad", "Convolution", "Convolution", "PixelShuffle"]
    assert found.operations[-1].blocks_first  # pyright: ignore[reportAttributeAccessIssue]
    assert_same_pixels(built, found)


@pytest.mark.parametrize(
    ("key", "sinks"), [("edsr_x2", True), ("srresnet_shared_x2", False), ("edsr_official_x3", False)]
)
def test_sink_shuffle_on_networks(key: str, sinks: bool) -> None:
    """EDSR x2 has 3*4 sunk outputs; SRResNet has a PReLU in between; at x3 there would be 27."""
    built = lower(quantized_network(key))
    found = sink_shuffle(built)
    assert (found is not built) == sinks
    assert isinstance(found.operations[-1], ops.PixelShuffle) == sinks


def test_sink_shuffle_leaves_what_is_read_twice_or_grouped_or_unpadded() -> None:
    built = tail(2, 2, 3, 3)
    head, shuffle, last = built.operations
    assert isinstance(last, ops.Convolution)
    for changed in (replace(last, padding=0), replace(last, groups=2)):
        other = replace(built, operations=(head, shuffle, changed))
        assert sink_shuffle(other) is other
    tensors = dict(built.tensors) | {"z": Tensor("z", 2, 2, ANY[1])}
    twice = replace(built, tensors=tensors, operations=(head, shuffle, ops.Requantize("z", "s"), last))
    assert sink_shuffle(twice) is twice


@pytest.mark.parametrize(
    "key", ["edsr_x2", "edsr_official_x3", "edsr_x4", "srresnet_x4", "rdn_x2", "imdn_x2", "abpn_x3"]
)
def test_blocks_first_permutes_a_convolution(key: str) -> None:
    built = lower(quantized_network(key))
    found = blocks_first(built)
    before = [o for o in built.operations if isinstance(o, ops.PixelShuffle)]
    after = [o for o in found.operations if isinstance(o, ops.PixelShuffle)]
    assert len(before) == len(after) > 0
    changed = [o.blocks_first for o in after]
    # ABPN adds in front of its shuffle, so there is no convolution to permute
    assert all(changed) == (key != "abpn_x3")
    if key != "abpn_x3":
        weights = zip(built.operations, found.operations, strict=True)
        assert any(
            isinstance(a, ops.Convolution) and isinstance(b, ops.Convolution) and not np.array_equal(a.weight, b.weight)
            for a, b in weights
        )


def test_blocks_first_leaves_a_shuffle_behind_something_else() -> None:
    tensors = [Tensor("r", 12, 1, IMAGE_GRID), Tensor("y", 3, 2, IMAGE_GRID)]
    built = graph([ops.RepeatChannels("r", "x", 4), ops.PixelShuffle("y", "r", 2)], tensors, scale=2)
    assert not blocks_first(built).operations[-1].blocks_first  # pyright: ignore[reportAttributeAccessIssue]


def test_rewrites_do_not_change_the_graph_they_are_given() -> None:
    built = lower(quantized_network("edsr_x2"))
    picture = noise(5, 5)
    before = reference.run(built, picture), kinds(built), dict(built.tensors)
    optimize(built)
    assert np.array_equal(reference.run(built, picture), before[0])
    assert (kinds(built), dict(built.tensors)) == before[1:]
