from __future__ import annotations

import numpy as np
import pytest
from hand_graphs import ANY, EXACT, single_operations
from small_quantized import noise

from srquant.engines import Description, Engine
from srquant.engines.integer_torch import IntegerTorchEngine, has_onednn_int8
from srquant.engines.onnxruntime import OnnxRuntimeEngine
from srquant.engines.openvino import OpenVINOEngine
from srquant.integer import IntegerGraph, reference
from srquant.integer import graph as ops
from srquant.integer.onnx import describe_graph, to_onnx

NAMES = list(single_operations(EXACT))
IN_FLOAT = ("multiply", "float program")
SIZES = [(17, 23), (1, 1), (1, 8), (6, 3)]


def opened(engine: str, graph: IntegerGraph) -> Engine:
    if engine == "torch":
        return IntegerTorchEngine(graph)
    model, description = to_onnx(graph).SerializeToString(), Description.from_json(describe_graph(graph))
    kind = OnnxRuntimeEngine if engine == "onnxruntime" else OpenVINOEngine
    return kind(model, description, 1)


def largest_difference(engine: Engine, graph: IntegerGraph) -> int:
    largest = 0
    for i, size in enumerate(SIZES):
        picture = noise(*size, seed=i)
        found, wanted = engine.run(picture), reference.run(graph, picture)
        assert found.dtype == np.uint8
        assert found.shape == wanted.shape
        largest = max(largest, int(np.abs(found.astype(int) - wanted).max()))
    return largest


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_with_exact_scales_every_engine_is_the_reference(name: str, engine: str) -> None:
    graph = single_operations(EXACT)[name]
    # a float program is not on exact scales: it may round to the neighbour
    assert largest_difference(opened(engine, graph), graph) <= (1 if name in IN_FLOAT else 0)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_with_any_scales_an_engine_is_a_level_off_at_most_and_onnxruntime_never(name: str, engine: str) -> None:
    graph = single_operations(ANY)[name]
    allowed = 0 if engine == "onnxruntime" and name not in IN_FLOAT else 1
    assert largest_difference(opened(engine, graph), graph) <= allowed


@pytest.mark.parametrize("grids", [EXACT, ANY], ids=["exact", "any"])
@pytest.mark.parametrize("name", NAMES)
def test_the_float_fallback_of_torch_is_the_reference(name: str, grids: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srquant.engines.integer_torch.has_onednn_int8", lambda: False)
    graph = single_operations(grids)[name]
    inexact = grids is ANY and name in ("add", "add of the picture", "multiply by one channel")
    engine = IntegerTorchEngine(graph)
    assert largest_difference(engine, graph) <= (1 if inexact or name in IN_FLOAT else 0)
    real = (ops.Convolution, ops.FloatProgram, ops.Multiply)
    assert len(engine.left_in_float()) == (name == "prelu") + sum(isinstance(o, real) for o in engine._graph.operations)


def test_onednn_is_tried_and_told() -> None:
    has_onednn_int8.cache_clear()
    assert has_onednn_int8() in (True, False)
    graph = single_operations(EXACT)["conv"]
    assert IntegerTorchEngine(graph).left_in_float() == ([] if has_onednn_int8() else ["y"])


def test_onednn_that_is_missing_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("qconv_prepack")

    graph = single_operations(EXACT)["conv relu"]
    for broken in (missing, lambda *_: lambda codes: codes[:, :2] * 0):
        monkeypatch.setattr("srquant.engines.integer_torch._onednn", broken)
        has_onednn_int8.cache_clear()
        try:
            assert not has_onednn_int8()
            assert largest_difference(IntegerTorchEngine(graph), graph) == 0
        finally:
            has_onednn_int8.cache_clear()
