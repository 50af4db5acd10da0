"""LiteRT files as files: what they hold, what they tell, and what is not written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hand_graphs import ANY, EXACT, convolution, graph, single_operations
from small_quantized import CONFIGS, quantized_network

from srquant.errors import UserError
from srquant.integer import IntegerGraph, lower, reference
from srquant.integer import graph as ops
from srquant.integer.graph import Tensor
from srquant.integer.litert import CARD_KEY, default_shape, to_litert
from srquant.integer.litert_file import FileBuilder, float_operators, read_model, read_text
from srquant.integer.litert_rewrites import prepare
from srquant.networks.onnx import METADATA_KEY

pytest.importorskip("ai_edge_litert")

PICTURE = np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def tensors(content: bytes) -> dict[str, tuple[list[int], float | None, int | None]]:
    """Shape, scale and zero point of every tensor."""
    found = {}
    for tensor in read_model(content).subgraphs[0].tensors:
        grid = tensor.quantization
        single = grid is not None and grid.scale is not None and len(grid.scale) == 1
        told = (float(grid.scale[0]), int(grid.zeroPoint[0])) if single else (None, None)
        found[tensor.name.decode()] = (list(tensor.shape), *told)
    return found


def test_a_file_tells_what_it_is(tmp_path: Path) -> None:
    network = quantized_network("abpn_x3")
    made = lower(network)
    path = tmp_path / "a.tflite"
    path.write_bytes(to_litert(made, 20, 30))
    told = json.loads(read_text(path, METADATA_KEY) or "")
    assert told["info"]["name"] == "abpn"
    assert told["halo"] == network.halo
    assert told["provenance"]["placement"] == str(network.placement)
    assert told["litert"] == {"shape": [20, 30], "pictures": "uint8", "unequal": []}
    card = read_text(path, CARD_KEY) or ""
    for words in (
        "# abpn x3, int8",
        "`picture`, uint8 [1, 20, 30, 3], rows from the top, red, green, blue; the pixel itself, 0 black, 255 white",
        "`enlarged`, uint8 [1, 60, 90, 3]",
        "tiles need 4 pixels around them",
        str(network.placement),
        "yes, bit for bit",
        "Licence of the weights: not known",
    ):
        assert words in card
    assert read_text(path, "OTHER") is None
    model = read_model(path.read_bytes())
    (signature,) = model.signatureDefs
    assert [entry.name for entry in (*signature.inputs, *signature.outputs)] == [b"picture", b"enlarged"]
    assert model.description == b"srquant abpn x3"
    int8 = json.loads(_text(to_litert(made, 20, 30, io="int8"), METADATA_KEY, tmp_path))
    assert int8["litert"]["pictures"] == "int8"


def _text(content: bytes, key: str, folder: Path) -> str:
    path = folder / "b.tflite"
    path.write_bytes(content)
    return read_text(path, key) or ""


@pytest.mark.parametrize("io", ["uint8", "int8"])
def test_the_same_graph_gives_the_same_bytes(io: str) -> None:
    made = lower(quantized_network("srresnet_x4"))
    content = to_litert(made, 8, 8, io=io)  # pyright: ignore[reportArgumentType]
    assert to_litert(made, 8, 8, io=io) == content  # pyright: ignore[reportArgumentType]
    assert to_litert(made, 8, 9, io=io) != content  # pyright: ignore[reportArgumentType]


def test_tensors_tell_true_scales_and_zero_points() -> None:
    """So that a runtime on real numbers sees the same network: the picture minus its mean, low bits and all."""
    made = lower(quantized_network("edsr_x2", 4))
    grid = made.tensors[made.input].grid
    assert grid.zero_point > 0
    found = tensors(to_litert(made, 6, 7))
    assert found["picture"] == ([1, 6, 7, 3], 1.0, 0)
    assert found["picture_int8"] == ([1, 6, 7, 3], 1.0, -128)
    assert found["picture_centred"] == ([1, 6, 7, 3], 1.0, grid.zero_point - 128)
    assert found["enlarged"] == ([1, 12, 14, 3], 1.0, made.tensors[made.output].grid.zero_point)
    for name, tensor in made.tensors.items():
        if name in found and name != made.input:
            scale, zero_point = found[name][1:]
            assert scale == tensor.grid.scale
            assert zero_point == tensor.grid.zero_point + 127 - tensor.grid.maximum_code


def test_constants_that_are_the_same_are_stored_once() -> None:
    builder = FileBuilder()
    values = np.arange(4, dtype=np.int32)
    first = builder.constant("a", values)
    assert builder.constant("b", values.copy()) == first
    assert builder.constant("b", values, 0.5) != first
    assert builder.constant("b", values.reshape(2, 2)) != first
    assert builder.constant("b", values.astype(np.float32)) != first


def test_what_has_no_integer_form_is_refused_unless_allowed() -> None:
    made = lower(quantized_network("imdn_x2"))
    with pytest.raises(UserError) as error:
        to_litert(made, 8, 8)
    for words in ("2 operations have no integer form", "quantizers_imdb1_cca (FloatProgram)", "--allow-float"):
        assert words in str(error.value)
    content = to_litert(made, 8, 8, allow_float=True)
    told = float_operators(content)
    assert told
    assert all("_cca" in name for name in told)
    assert float_operators(to_litert(lower(quantized_network("edsr_x2")), 8, 8)) == []


def test_gates_are_refused() -> None:
    gate = ops.GatedRound("y", "x", picture_grid=None)  # pyright: ignore[reportArgumentType]
    made = graph([gate], [Tensor("y", 3, 1, ANY[0], "gated")])
    with pytest.raises(UserError, match=r"has gates .* which a LiteRT file cannot hold; export it to onnx"):
        to_litert(made, 8, 8, allow_float=True)


def test_other_mistakes() -> None:
    made = lower(quantized_network("edsr_x2"))
    with pytest.raises(UserError, match="unknown kind of pictures 'uint16'; known: uint8, int8"):
        to_litert(made, 8, 8, io="uint16")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="the shape is 0x8; allowed sides: 1 or more"):
        to_litert(made, 0, 8)


def test_the_default_shape_follows_the_halo() -> None:
    made = graph([convolution("y", "x", 3, 3)], [Tensor("y", 3, 1, ANY[0])])
    sides = {halo: default_shape(_with_halo(made, halo)) for halo in (0, 8, 21, 22, 40)}
    assert sides == {0: (128, 128), 8: (128, 128), 21: (128, 128), 22: (160, 160), 40: (256, 256)}
    with pytest.raises(UserError, match="looks at the whole picture: tell the size of the pictures with --shape HxW"):
        default_shape(_with_halo(made, None))


def _with_halo(made: IntegerGraph, halo: int | None) -> IntegerGraph:
    return IntegerGraph(made.info, halo, made.input, made.output, made.tensors, made.operations, {})


# Rewrites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True], ids=["any", "exact"])
@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("key", CONFIGS)
def test_rewrites_keep_every_pixel(key: str, bits: int, exact: bool) -> None:
    made = lower(quantized_network(key, bits, exact, "full"))
    prepared = prepare(made)
    assert np.array_equal(reference.run(prepared, PICTURE), reference.run(made, PICTURE))
    for operation in prepared.operations:
        assert not isinstance(operation, ops.RepeatChannels)
        assert not isinstance(operation, ops.PixelShuffle) or operation.blocks_first


@pytest.mark.parametrize("name", list(single_operations(EXACT)))
def test_rewrites_of_single_operations_keep_every_pixel(name: str) -> None:
    for grids in (EXACT, ANY):
        made = single_operations(grids)[name]
        assert np.array_equal(reference.run(prepare(made), PICTURE), reference.run(made, PICTURE))


def shuffled(operations: list[ops.Operation], source: str, **grids: tuple[int, int]) -> IntegerGraph:
    """A shuffle by 2 behind some operations; channels and place of the grid of every tensor they make."""
    made = [Tensor(name, channels, 1, ANY[place]) for name, (channels, place) in grids.items()]
    output = Tensor("y", made[-1].channels // 4, 2, made[-1].grid)
    last = ops.PixelShuffle("y", source, 2)
    return graph([*operations, last], [*made, output], scale=2)


def test_permutations_go_up_to_the_convolutions() -> None:
    """Through additions, slopes and requantisations, where nobody else reads what is permuted."""
    slopes = np.linspace(0.1, 0.6, 12, dtype=np.float32)
    head = [convolution("h", "x", 3, 12, scale=2.0**-11), convolution("k", "x", 3, 12, scale=2.0**-12, seed=4)]
    made = shuffled(
        [*head, ops.LeakyRelu("l", "h", slopes), ops.Requantize("r", "k"), ops.Add("s", "l", "r")],
        "s",
        h=(12, 0),
        k=(12, 1),
        l=(12, 1),
        r=(12, 2),
        s=(12, 2),
    )
    prepared = prepare(made)
    assert len(prepared.operations) == len(made.operations), "no convolution that only permutes"
    assert np.array_equal(reference.run(prepared, PICTURE), reference.run(made, PICTURE))


@pytest.mark.parametrize("case", ["read twice", "grouped", "sliced", "the picture", "with itself"])
def test_permutations_that_cannot_go_up_become_a_convolution(case: str) -> None:
    head = convolution("h", "x", 3, 12, scale=2.0**-11)
    if case == "read twice":
        made = shuffled([head, ops.Requantize("r", "h"), ops.Add("s", "h", "r")], "s", h=(12, 0), r=(12, 1), s=(12, 2))
    elif case == "grouped":
        grouped = convolution("g", "h", 12, 12, groups=3, seed=2)
        made = shuffled([head, grouped], "g", h=(12, 0), g=(12, 1))
    elif case == "sliced":
        made = shuffled([head, ops.SliceChannels("s", "h", 4, 12)], "s", h=(12, 0), s=(8, 0))
    elif case == "the picture":
        made = shuffled([ops.Concatenate("c", ("x", "x", "x", "x"))], "c", c=(12, 0))
    else:
        made = shuffled([head, ops.Add("s", "h", "h")], "s", h=(12, 0), s=(12, 2))
    prepared = prepare(made)
    assert len(prepared.operations) == len(made.operations) + (case != "with itself")
    assert np.array_equal(reference.run(prepared, PICTURE), reference.run(made, PICTURE))
