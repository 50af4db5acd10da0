from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hand_graphs import ANY, single_operations
from small_quantized import CONFIGS, quantized_network

from srquant.errors import UserError
from srquant.integer import lower
from srquant.integer.onnx import describe_graph, to_onnx
from srquant.networks.onnx import write_onnx


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("key", CONFIGS)
def test_the_file_is_checked_portable_and_symbolic(key: str, bits: int) -> None:
    network = quantized_network(key, bits)
    model = to_onnx(lower(network))
    onnx.checker.check_model(model, full_check=True)
    assert [o.domain for o in model.opset_import] == [""], "no operators of a single runtime"
    assert model.opset_import[0].version <= 21
    assert model.ir_version <= 10
    (picture,), (enlarged,) = model.graph.input, model.graph.output
    assert (picture.name, enlarged.name) == ("picture", "enlarged")
    for value in (picture, enlarged):
        tensor = value.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.UINT8
        assert [d.dim_param != "" for d in tensor.shape.dim] == [True, True, True, False]
        assert tensor.shape.dim[3].dim_value == 3
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("key", ["edsr_x2", "imdn_x2"])
def test_every_convolution_stands_between_dequantised_values(key: str) -> None:
    model = to_onnx(lower(quantized_network(key, 2)))
    makers = {node.output[0]: node for node in model.graph.node}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    seen = 0
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] in constants:  # the latter is part of a float program
            continue
        seen += 1
        sources = [makers[name] for name in node.input]
        assert [source.op_type for source in sources] == ["DequantizeLinear"] * 3
        weight, bias = (constants[source.input[0]] for source in sources[1:])
        assert (weight.dtype, bias.dtype) == (np.int8, np.int32)
        assert constants[sources[1].input[1]].shape == (len(weight),)
        readers = [other.op_type for other in model.graph.node if node.output[0] in other.input]
        assert readers == ["QuantizeLinear"]
    assert seen == len(quantized_network(key, 2).convolutions())


def test_low_bit_grids_are_clipped_and_eight_bit_ones_are_not() -> None:
    def clips(bits: int) -> int:
        model = to_onnx(lower(quantized_network("edsr_x2", bits, placement="full")))
        return sum(node.op_type == "Clip" for node in model.graph.node)

    assert clips(8) == 0
    assert clips(4) == 10  # 7 convolutions and 3 additions; the picture's own grid has 8 bit
    relu = to_onnx(single_operations(ANY)["conv relu"])
    (clip,) = [node for node in relu.graph.node if node.op_type == "Clip"]
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in relu.graph.initializer}
    assert [int(constants[name]) for name in clip.input[1:]] == [ANY[2].zero_point, 255]


@pytest.mark.parametrize("key", CONFIGS)
def test_the_same_graph_gives_the_same_bytes(key: str, tmp_path: Path) -> None:
    network = quantized_network(key)
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    write_onnx(to_onnx(lower(network)), one)
    write_onnx(to_onnx(lower(network)), two)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]


def test_the_file_describes_itself() -> None:
    network = quantized_network("edsr_official_x3", 4)
    model = to_onnx(lower(network))
    told = {p.key: p.value for p in model.metadata_props}
    assert list(told) == ["srquant"]
    description = json.loads(told["srquant"])
    assert description == json.loads(describe_graph(lower(network)))
    assert description["info"] == {"name": "edsr", "scale": 3, "channels": 3, "peak": 255.0, "size_multiple": 1}
    assert description["halo"] == network.halo
    assert description["provenance"]["placement"] == str(network.placement)
    assert description["provenance"]["quantization"]["weight_bits"] == 4
    assert model.producer_name == "srquant"


def test_a_missing_package_gives_an_install_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = lower(quantized_network("edsr_x2"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'srquant\[onnx\]'"):
        to_onnx(graph)


def test_nothing_is_left_where_nothing_can_be_written(tmp_path: Path) -> None:
    graph = lower(quantized_network("edsr_x2"))
    with pytest.raises(UserError, match="does not exist"):
        write_onnx(to_onnx(graph), tmp_path / "missing" / "a.onnx")
    with pytest.raises(UserError, match="it is a folder"):
        write_onnx(to_onnx(graph), tmp_path)
    assert not list(tmp_path.iterdir())
