"""Integer graphs built by hand: one operation each, on grids that are awkward on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srquant.integer import graph as ops
from srquant.integer import program
from srquant.integer.graph import IntegerGraph, Operation, Tensor
from srquant.integer.program import Step
from srquant.networks.info import NetworkInfo
from srquant.quantizers.grid import IMAGE_GRID, Grid

EXACT = (Grid(2.0**-3, 6, 255), Grid(2.0**-4, 130, 255), Grid(2.0**-2, 40, 255))
"""Powers of two and even zero points."""
ANY = (Grid(float(np.float32(0.1171)), 7, 255), Grid(float(np.float32(0.0613)), 131, 255), Grid(0.25390625, 41, 255))


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def convolution(
    output: str,
    source: str,
    inputs: int,
    outputs: int,
    *,
    size: int = 3,
    scale: float = 2.0**-9,
    groups: int = 1,
    relu: bool = False,
    seed: int = 0,
) -> ops.Convolution:
    """Random weights; scales differ by channel by powers of two."""
    r = random(seed)
    spread = np.array([2.0 ** -(i % 3) for i in range(outputs)])
    return ops.Convolution(
        output,
        source,
        weight=r.integers(-127, 128, (outputs, inputs // groups, size, size), dtype=np.int8),
        bias=r.integers(-3000, 3000, outputs, dtype=np.int32),
        weight_scale=(scale * spread).astype(np.float32),
        padding=size // 2,
        groups=groups,
        relu=relu,
    )


def graph(
    operations: list[Operation], tensors: list[Tensor], *, picture: Grid = IMAGE_GRID, scale: int = 1
) -> IntegerGraph:
    """A graph from the picture `x`, three channels, to the last operation's output."""
    named = {"x": Tensor("x", 3, 1, picture)} | {tensor.name: tensor for tensor in tensors}
    info = NetworkInfo(name="edsr", scale=scale, peak=255.0)
    return IntegerGraph(info, 4, "x", operations[-1].output, named, tuple(operations), {})


def single_operations(grids: tuple[Grid, Grid, Grid]) -> dict[str, IntegerGraph]:
    """Every operation behind as little as possible: most need a convolution to bring the picture to a grid."""
    first, second, third = grids
    exact = grids is EXACT
    fine = 1.0 if exact else 1.07

    def t(name: str, channels: int, grid: Grid, resolution: int = 1) -> Tensor:
        return Tensor(name, channels, resolution, grid)

    def head(channels: int, grid: Grid = first, name: str = "h", seed: int = 1) -> ops.Convolution:
        return convolution(name, "x", 3, channels, scale=fine * grid.scale * 2.0**-8, seed=seed)

    low = replace(second, zero_point=4, maximum_code=15)
    made: dict[str, IntegerGraph] = {}
    made["conv"] = graph([convolution("y", "x", 3, 3, scale=fine * 2.0**-10)], [t("y", 3, third)])
    made["conv 1x1"] = graph([convolution("y", "x", 3, 3, size=1, scale=fine * 2.0**-8)], [t("y", 3, third)])
    made["conv 9x9"] = graph([convolution("y", "x", 3, 3, size=9, scale=fine * 2.0**-13)], [t("y", 3, third)])
    made["conv of a shifted picture"] = graph(
        [convolution("y", "x", 3, 3, scale=fine * 2.0**-10)], [t("y", 3, third)], picture=Grid(1.0, 112, 255)
    )
    made["conv relu"] = graph([convolution("y", "x", 3, 3, scale=fine * 2.0**-10, relu=True)], [t("y", 3, third)])
    made["conv to 4 bit"] = graph([convolution("y", "x", 3, 3, scale=fine * 2.0**-13)], [t("y", 3, low)])
    made["conv relu to 4 bit"] = graph(
        [convolution("y", "x", 3, 3, scale=fine * 2.0**-13, relu=True)], [t("y", 3, low)]
    )
    made["grouped conv"] = graph(
        [head(8), convolution("g", "h", 8, 4, groups=4, seed=2), convolution("y", "g", 4, 3, scale=2.0**-8, seed=3)],
        [t("h", 8, first), t("g", 4, second), t("y", 3, third)],
    )
    made["add"] = graph(
        [head(3), head(3, second, "k", 5), ops.Add("y", "h", "k")],
        [t("h", 3, first), t("k", 3, second), t("y", 3, third)],
    )
    made["add of the picture"] = graph(
        [head(3, Grid(1.0, 128, 255)), ops.Add("y", "h", "x")], [t("h", 3, Grid(1.0, 128, 255)), t("y", 3, IMAGE_GRID)]
    )
    made["multiply"] = graph(
        [
            head(3),
            ops.FloatProgram("a", "h", attention_steps(3)),
            ops.Multiply("y", "h", "a"),
        ],
        [t("h", 3, first), t("a", 3, Grid(1 / 256, 0, 255)), t("y", 3, third)],
    )
    made["multiply by one channel"] = graph(
        [head(3), ops.SliceChannels("s", "h", 1, 2), ops.Multiply("y", "h", "s")],
        [t("h", 3, first), t("s", 1, first), t("y", 3, Grid(2.0, 130, 255) if exact else third)],
    )
    made["float program"] = graph(
        [head(3, second), ops.FloatProgram("y", "h", spatial_steps(3))],
        [t("h", 3, second), t("y", 3, replace(third, scale=third.scale / 16, zero_point=10))],
    )
    table = random(13).permutation(256).astype(np.uint8)
    made["lookup"] = graph([ops.Lookup("y", "x", table, "sigmoid")], [t("y", 3, third)])
    made["clip"] = graph([ops.Clip("y", "x", 30, 201)], [t("y", 3, IMAGE_GRID)])
    ends = np.array([[0, 30, 100], [15, 250, 40]], np.uint8)  # the last channel's window is empty: its highest wins
    made["channel clip"] = graph([ops.ChannelClip("y", "x", *ends)], [t("y", 3, IMAGE_GRID)])
    made["conv to windows"] = graph(
        [
            convolution("c", "x", 3, 3, scale=fine * 2.0**-13, relu=True),
            ops.ChannelClip("y", "c", np.zeros(3, np.uint8), ends[1]),
        ],
        [t("c", 3, replace(second, zero_point=0)), t("y", 3, replace(second, zero_point=0))],
    )
    made["leaky relu"] = graph(
        [head(3, second), ops.LeakyRelu("y", "h", np.array([0.125 if exact else 0.05], np.float32))],
        [t("h", 3, second), t("y", 3, third)],
    )
    made["prelu"] = graph(
        [
            head(3, second),
            ops.LeakyRelu("y", "h", np.array([0.25, 0.5, 2.0] if exact else [0.1, -0.3, 1.7], np.float32)),
        ],
        [t("h", 3, second), t("y", 3, third)],
    )
    made["requantize"] = graph([ops.Requantize("y", "x")], [t("y", 3, Grid(2.0, 20, 255) if exact else third)])
    made["requantize to 2 bit"] = graph(
        [head(3), ops.Requantize("y", "h")], [t("h", 3, first), t("y", 3, replace(first, zero_point=2, maximum_code=3))]
    )
    made["concat and slice"] = graph(
        [
            head(4),
            head(3, first, "k", 5),
            ops.Concatenate("c", ("h", "k")),
            ops.SliceChannels("s", "c", 2, 6),
            convolution("y", "s", 4, 3, seed=7),
        ],
        [t("h", 4, first), t("k", 3, first), t("c", 7, first), t("s", 4, first), t("y", 3, third)],
    )
    for blocks_first in (False, True):
        name = "shuffle, blocks first" if blocks_first else "shuffle"
        made[name] = graph(
            [head(12), ops.PixelShuffle("y", "h", 2, blocks_first)], [t("h", 12, first), t("y", 3, first, 2)], scale=2
        )
    made["shuffle by 3"] = graph(
        [head(27), ops.PixelShuffle("y", "h", 3)], [t("h", 27, first), t("y", 3, first, 3)], scale=3
    )
    made["repeat"] = graph(
        [ops.RepeatChannels("r", "x", 4), ops.PixelShuffle("y", "r", 2)],
        [t("r", 12, IMAGE_GRID), t("y", 3, IMAGE_GRID, 2)],
        scale=2,
    )
    made["pad"] = graph(
        [ops.Pad("p", "x", 2, 77), replace(convolution("y", "p", 3, 3, size=5, scale=fine * 2.0**-11), padding=0)],
        [t("p", 3, IMAGE_GRID), t("y", 3, third)],
    )
    return made


def attention_steps(channels: int) -> tuple[Step, ...]:
    """A channel attention: the mean, two 1x1 convolutions, a sigmoid."""
    r = random(9)
    reduced = 2

    def pointwise(output: str, source: str, inputs: int, outputs: int) -> program.Convolution:
        weight = r.normal(0, 0.2, (outputs, inputs, 1, 1)).astype(np.float32)
        return program.Convolution(output, source, weight, r.normal(0, 0.2, outputs).astype(np.float32), 1, 0, 1)

    return (
        program.Mean("mean", program.INPUT),
        pointwise("squeezed", "mean", channels, reduced),
        program.Unary("hidden", "squeezed", "relu"),
        pointwise("excited", "hidden", reduced, channels),
        program.Unary("attention", "excited", "sigmoid"),
    )


def spatial_steps(channels: int) -> tuple[Step, ...]:
    """Every step there is: a soft and a hard pooling of a grown map, brought back to its size."""
    weight = random(11).normal(0, 0.1, (channels, 1, 3, 3)).astype(np.float32)
    bias = random(12).normal(0, 0.1, channels).astype(np.float32)
    return (
        program.Grow("grown", program.INPUT, 9),
        program.Binary("small", "grown", 0.125, "multiply"),
        program.Unary("weight", "small", "exp"),
        program.Binary("weighted", "weight", "grown", "multiply"),
        program.Pool("sums", "weighted", "average", 4, 3),
        program.Pool("weights", "weight", "average", 4, 3),
        program.Binary("soft", "sums", "weights", "divide"),
        program.Convolution("strided", "soft", weight, bias, 2, 1, channels),
        program.Pool("hard", "grown", "max", 5, 2),
        program.Mean("mean", "hard"),
        program.Binary("centred", "hard", "mean", "subtract"),
        program.Unary("squares", "centred", "square"),
        program.Binary("positive", "squares", 0.25, "maximum"),
        program.Unary("roots", "positive", "sqrt"),
        program.Resize("coarse", "roots", program.INPUT),
        program.Resize("fine", "strided", program.INPUT),
        program.Unary("lit", "fine", "relu"),
        program.Binary("sum", "coarse", "lit", "add"),
    )
