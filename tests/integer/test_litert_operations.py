"""Every operation of a LiteRT file on the real interpreter, with all codes there are, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hand_graphs import ANY, EXACT, convolution, graph, single_operations

from srquant.engines import Description
from srquant.engines.litert import LiteRTEngine, check_loads
from srquant.errors import UserError
from srquant.integer import graph as ops
from srquant.integer import litert, reference
from srquant.integer.graph import IntegerGraph, Operation, Tensor
from srquant.integer.litert import to_litert
from srquant.integer.litert_file import read_model, schema
from srquant.integer.litert_kernels import function_kernel, is_equal, rectifier, unequal
from srquant.integer.litert_rewrites import prepare
from srquant.integer.onnx import describe_graph
from srquant.quantizers.agreement import TAKEN, add_xnnpack, agree, agreeing_grid, multiply_xnnpack
from srquant.quantizers.grid import IMAGE_GRID, Grid

pytest.importorskip("ai_edge_litert")

ALL_CODES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
ALL_PAIRS = np.stack([*np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2, indexing="ij"), np.zeros((256, 256))], 2)
ALL_PAIRS = ALL_PAIRS.astype(np.uint8)
SOURCES = (ANY[0], ANY[1], Grid(0.25, 100, 255), Grid(float(np.float32(0.31)), 5, 15))
TARGETS = (ANY[2], ANY[1], Grid(0.5, 64, 255), Grid(float(np.float32(0.27)), 6, 15), Grid(1.5, 1, 3))


FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def brought(name: str, channels: list[int], grid: Grid) -> tuple[ops.Convolution, Tensor]:
    """The codes of some channels of the picture, unchanged on another grid (those beyond its end become that)."""
    weight = np.zeros((len(channels), 3, 1, 1), np.int8)
    weight[np.arange(len(channels)), channels] = 64
    scale = np.full(len(channels), np.float32(grid.scale) / 64, np.float32)
    bias = np.full(len(channels), -64 * grid.zero_point, np.int32)
    return ops.Convolution(name, "x", weight, bias, scale, 0, 1, relu=False), Tensor(name, len(channels), 1, grid)


def unary(op: Operation, source: Grid, target: Grid, channels: int = 3) -> IntegerGraph:
    head, tensor = brought("h", list(range(channels)), source)
    return graph([head, op], [tensor, Tensor("y", channels, 1, target)])


def binary(op: Operation, grids: tuple[Grid, Grid, Grid]) -> IntegerGraph:
    left, right = brought("l", [0, 0, 1], grids[0]), brought("r", [1, 1, 0], grids[1])
    return graph([left[0], right[0], op], [left[1], right[1], Tensor("y", 3, 1, grids[2])])


def found(made: IntegerGraph, picture: np.ndarray) -> np.ndarray:
    return LiteRTEngine(made, Description.from_json(describe_graph(made)), 1).run(picture)


def kinds(made: IntegerGraph) -> list[str]:
    """The operators of a file."""
    model = read_model(to_litert(made, 4, 4, allow_float=True))
    names = {number: name for name, number in vars(schema().BuiltinOperator).items() if isinstance(number, int)}
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


def check(made: IntegerGraph, picture: np.ndarray) -> None:
    assert is_equal(made, made.operations[-1])
    wanted = reference.run(made, picture)
    assert len(np.unique(wanted)) > 1
    assert np.array_equal(found(made, picture), wanted)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_requantize(source: Grid, target: Grid) -> None:
    check(unary(ops.Requantize("y", "h"), source, target), ALL_CODES)


@pytest.mark.parametrize("slopes", [[0.1], [0.25], [-0.2], [1.3], [0.0], [0.1, -0.3, 0.9], [0.1, -0.3, 1.7], [1, 2, 3]])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_leaky_relu(source: Grid, target: Grid, slopes: list[float]) -> None:
    op = ops.LeakyRelu("y", "h", np.array(slopes, np.float32))
    made = unary(op, source, target)
    parts = rectifier(made, op)
    if source.scale != target.scale:
        assert parts is not None
        assert parts.form == ("maximum" if max(slopes) <= 1 else "sum")
    assert ("GATHER" in kinds(made)) == (parts is None)
    check(made, ALL_CODES)


def lookup(function: str, source: Grid, target: Grid) -> ops.Lookup:
    real = (np.arange(256) - source.zero_point) * np.float64(np.float32(source.scale))
    codes = np.rint(FUNCTIONS[function](real) / np.float64(np.float32(target.scale))) + target.zero_point
    return ops.Lookup("y", "h", np.clip(codes, 0, target.maximum_code).astype(np.uint8), function)


@pytest.mark.parametrize(
    ("function", "target", "kernel"),
    [
        ("sigmoid", Grid(1 / 256, 0, 255), "LOGISTIC"),
        ("tanh", Grid(1 / 128, 128, 255), "TANH"),
        ("sigmoid", Grid(1 / 255, 0, 255), None),
        ("tanh", Grid(1 / 8, 8, 15), None),
        ("silu", Grid(float(np.float32(0.07)), 9, 255), None),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_lookup(source: Grid, function: str, target: Grid, kernel: str | None) -> None:
    op = lookup(function, source, target)
    made = unary(op, source, target)
    assert function_kernel(made, op) == kernel
    assert (kernel or "GATHER") in kinds(made)
    check(made, ALL_CODES)


def test_a_lookup_with_another_table_than_its_name_says_is_gathered() -> None:
    op = lookup("sigmoid", SOURCES[0], Grid(1 / 256, 0, 255))
    table = op.table.copy()
    table[17] += 1
    made = unary(replace(op, table=table), SOURCES[0], Grid(1 / 256, 0, 255))
    assert "GATHER" in kinds(made)
    check(made, ALL_CODES)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 200), (9, 255), (9, 13), (0, 255)])
@pytest.mark.parametrize("source", SOURCES)
def test_clip(source: Grid, lowest: int, highest: int) -> None:
    check(unary(ops.Clip("y", "h", lowest, highest), source, source), ALL_CODES)


GRIDS = (
    (ANY[0], ANY[1], ANY[2]),
    (Grid(float(np.float32(0.7)), 128, 255), IMAGE_GRID, IMAGE_GRID),
    (Grid(1.0, 128, 255), Grid(1.0, 112, 255), IMAGE_GRID),
    (ANY[0], Grid(float(np.float32(0.3)), 5, 15), Grid(float(np.float32(0.9)), 5, 15)),
    (ANY[1], Grid(1 / 256, 0, 255), ANY[1]),
)


@pytest.mark.parametrize("grids", GRIDS)
def test_additions_and_products_on_agreeing_grids(grids: tuple[Grid, Grid, Grid]) -> None:
    target = agreeing_grid("add", grids)
    assert target is not None
    check(binary(ops.Add("y", "l", "r"), (*grids[:2], target)), ALL_PAIRS)
    target = agreeing_grid("multiply", grids)
    assert target is not None
    check(binary(ops.Multiply("y", "l", "r"), (*grids[:2], target)), ALL_PAIRS)


def test_the_arithmetic_of_xnnpack_is_what_the_interpreter_computes() -> None:
    random = np.random.default_rng(0)
    apart = 0
    for _ in range(12):
        scales, zeros = np.float32(random.uniform(0.05, 2, 3)), random.integers(0, 256, 3)
        one, two, target = (Grid(float(s), int(z), 255) for s, z in zip(scales, zeros, strict=True))
        grids = one, two, target
        first, second = ALL_PAIRS[..., 0], ALL_PAIRS[..., 1]
        for op, simulated in ((ops.Add("y", "l", "r"), add_xnnpack), (ops.Multiply("y", "l", "r"), multiply_xnnpack)):
            made = binary(op, grids)
            picture = found(made, ALL_PAIRS)
            assert np.array_equal(picture[..., 0], simulated(first, second, grids))
            assert np.array_equal(picture[..., 2], simulated(second, first, grids))
            differs = not np.array_equal(picture, reference.run(made, ALL_PAIRS))
            assert differs == (not is_equal(made, op))
            apart += differs
    assert apart, "grids on which it matters"


@pytest.mark.parametrize(
    "scales", [(0.5, 1.0, 1.0), (1.0, 0.5, 1.0), (0.25, 2.0, 1.0), (0.125, 0.125, 0.5), (4.0, 0.0625, 2.0)]
)
@pytest.mark.parametrize("codes", [(255, 255, 255), (15, 255, 255), (255, 15, 15)])
def test_sums_full_of_ties_are_rounded_to_even(scales: tuple[float, ...], codes: tuple[int, ...]) -> None:
    """As convolutions, which nothing but power-of-two grids allow."""
    one, two, target = (Grid(s, 2 * (c // 5), c) for s, c in zip(scales, codes, strict=True))
    made = binary(ops.Add("y", "l", "r"), (one, two, target))
    prepared = prepare(made)
    assert agree("add", (one, two, target)) == any(isinstance(op, ops.Add) for op in prepared.operations)
    assert unequal(prepared) == []
    wanted = reference.run(made, ALL_PAIRS)
    assert np.array_equal(reference.run(prepared, ALL_PAIRS), wanted)
    assert np.array_equal(found(made, ALL_PAIRS), wanted)


@pytest.mark.parametrize("ratio", [64, 128, 256, 2**14])
@pytest.mark.parametrize("bits", [8, 4])
def test_sums_of_far_ratios_on_ties(ratio: int, bits: int) -> None:
    """The larger summand is read several times over."""
    fine, coarse = Grid(2 / ratio, 6, 255), Grid(2.0, 4, 2**bits - 1)
    for grids in ((fine, coarse, Grid(4 / ratio, 128, 255)), (coarse, fine, Grid(4.0, 12, 255))):
        made = binary(ops.Add("y", "l", "r"), grids)
        prepared = prepare(made)
        assert agree("add", grids) == any(isinstance(op, ops.Add) for op in prepared.operations)
        assert unequal(prepared) == []
        wanted = reference.run(made, ALL_PAIRS)
        assert np.array_equal(reference.run(prepared, ALL_PAIRS), wanted)
        assert np.array_equal(found(made, ALL_PAIRS), wanted)


def test_ties_that_no_weights_can_express_are_told() -> None:
    made = binary(ops.Add("y", "l", "r"), (Grid(2.0**-15, 0, 255), Grid(1.0, 0, 255), Grid(2.0**-14, 0, 255)))
    assert unequal(prepare(made)) == ["y (Add)"]
    made = binary(ops.Add("y", "l", "r"), (Grid(0.75, 0, 255), Grid(1.5, 0, 255), Grid(1.5, 0, 255)))
    assert unequal(prepare(made)) == ["y (Add)"]


@pytest.mark.parametrize(("ratio", "taken"), [(2.0**-32, True), (255.9, True), (256.0, False), (1e6, False)])
def test_which_convolutions_are_taken(ratio: float, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, tensor = brought("y", [0, 1, 2], Grid(float(np.float32(1 / ratio)), 9, 255))
    made = graph([replace(conv, weight_scale=np.ones(3, np.float32))], [tensor])
    assert (ratio < TAKEN["convolution"][1]) == taken == is_equal(made, made.operations[0])
    if taken:
        assert np.array_equal(found(made, ALL_PAIRS), reference.run(made, ALL_PAIRS))
        return
    with pytest.raises(UserError, match=r"the scale of 'y' is .* finer .* \(Convolution\), XNNPACK takes less than"):
        to_litert(made, 4, 4)
    monkeypatch.setattr(litert, "_check_ratios", lambda graph: None)
    with pytest.raises(UserError, match="LiteRT cannot load the file"):
        check_loads(to_litert(made, 4, 4))


@pytest.mark.parametrize("ratio", [2.0**-11, 2.0**-10, 255.9, 256, 300, 2000, 1e9])
@pytest.mark.parametrize("kind", ["add", "multiply"])
def test_ratios_that_are_not_taken_are_not_proven(kind: str, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ANY[0], ANY[0] if kind == "add" else ANY[1]
    made = one.scale if kind == "add" else one.scale * two.scale
    grids = one, two, Grid(float(np.float32(made / ratio)), 20, 255)
    built = binary(ops.Add("y", "l", "r") if kind == "add" else ops.Multiply("y", "l", "r"), grids)
    assert is_equal(built, built.operations[-1]) == (ratio < 256 and (kind == "multiply" or ratio >= 2.0**-10))
    if ratio >= 256:
        with pytest.raises(UserError, match=r"the scale of 'y' is .* XNNPACK takes less than 256"):
            found(built, ALL_PAIRS)
        monkeypatch.setattr(litert, "_check_ratios", lambda graph: None)
    if ratio < 2**19:  # there LiteRT ends the process
        equal = np.array_equal(found(built, ALL_PAIRS), reference.run(built, ALL_PAIRS))
        assert equal == (ratio < 256)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e5])
@pytest.mark.parametrize("op", [ops.Requantize("y", "h"), ops.LeakyRelu("y", "h", np.array([0.1], np.float32))])
def test_functions_of_one_code_at_any_ratio(op: Operation, scale: float) -> None:
    made = unary(op, ANY[0], Grid(float(np.float32(scale)), 20, 255))
    assert ("GATHER" in kinds(made)) == (scale < 1e-6)
    assert np.array_equal(found(made, ALL_CODES), reference.run(made, ALL_CODES))


def test_shuffles_of_one_tensor_by_several_factors() -> None:
    """Each by the order of its own factor, and two alike by one convolution."""
    source, total = ANY[0], Grid(float(np.float32(0.173)), 9, 255)
    operations: list[Operation] = [
        convolution("h", "x", 3, 36, scale=0.11 * 2.0**-9),
        ops.PixelShuffle("p", "h", 2),
        ops.PixelShuffle("q", "h", 6),
        ops.PixelShuffle("again", "h", 6),
        convolution("v", "p", 9, 9, scale=2.0**-9),
        ops.PixelShuffle("w", "v", 3),
        ops.Add("s", "q", "again"),
        ops.Add("y", "w", "s"),
    ]
    sizes = {"h": (36, 1), "p": (9, 2), "q": (1, 6), "again": (1, 6), "v": (9, 2), "w": (1, 6), "s": (1, 6)}
    tensors = [Tensor(name, *size, source) for name, size in sizes.items()] + [Tensor("y", 1, 6, total)]
    made = graph(operations, tensors, scale=6)
    prepared = prepare(made)
    moved = [name for name in prepared.tensors if name.startswith("h_")]
    assert len(moved) == 2
    assert len({op.output for op in prepared.operations}) == len(prepared.operations)
    picture = np.random.default_rng(0).integers(0, 256, (7, 13, 3), dtype=np.uint8)
    wanted = reference.run(made, picture)
    assert len(np.unique(wanted)) > 50
    assert np.array_equal(reference.run(prepared, picture), wanted)


@pytest.mark.parametrize("grids", [EXACT, ANY], ids=["exact", "any"])
@pytest.mark.parametrize("name", list(single_operations(EXACT)))
def test_single_operations(name: str, grids: tuple[Grid, Grid, Grid]) -> None:
    made = single_operations(grids)[name]
    for i, size in enumerate([(17, 23), (1, 1), (1, 8), (6, 3)]):
        picture = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert np.array_equal(found(made, picture), reference.run(made, picture)), size
