"""Models and the engines that run them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from srquant.engines.base import Engine
from srquant.engines.exported import SUFFIXES, Description, ExportedFile, read_exported
from srquant.engines.float_torch import FloatEngine, SimulationEngine
from srquant.engines.integer_torch import IntegerTorchEngine
from srquant.engines.litert import LiteRTEngine
from srquant.engines.onnxruntime import OnnxRuntimeEngine
from srquant.engines.openvino import OpenVINOEngine
from srquant.engines.reference import ReferenceEngine
from srquant.errors import UserError, unknown
from srquant.integer.lowering import lower
from srquant.integer.onnx import describe_graph, to_onnx
from srquant.networks.info import SRNetwork
from srquant.networks.loading import load_network
from srquant.networks.onnx import describe_network, float_onnx
from srquant.quantizers.artefact import is_artefact, load_artefact
from srquant.quantizers.network import QuantizedNetwork

Model = SRNetwork | QuantizedNetwork | ExportedFile

ENGINES: Mapping[str, str] = {
    "simulate": "the quantised network in float32, as training sees it",
    "reference": "the integer graph, slow and right by definition",
    "torch": "PyTorch: oneDNN int8 for a quantised network, eager float32 for a float one",
    "onnxruntime": "ONNX Runtime on the processor",
    "litert": "LiteRT (TFLite) on the processor",
    "openvino": "OpenVINO on the processor",
}

_PACKAGES = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert", "openvino": "openvino"}
"""What an engine needs beside srquant's own dependencies."""


def load(path: Path | str) -> Model:
    """Open a float checkpoint (.safetensors, .pth, .pt), an artefact or an exported file (.onnx, .xml, .tflite).

    Raises:
        UserError: the file is missing, damaged, unknown or not srquant's; one line says what was found.
    """
    path = Path(path)
    if path.suffix in SUFFIXES:
        return read_exported(path)
    return load_artefact(path) if is_artefact(path) else load_network(path, others=SUFFIXES)


def open_engine(model: Model, name: str = "auto", *, threads: int | None = None) -> Engine:
    """An engine that runs a model.

    Args:
        model: from `load`.
        name: one of `ENGINES`; "auto" takes torch for a float network, else the last that is installed and can.
        threads: for ONNX Runtime, LiteRT and OpenVINO; PyTorch's own setting counts for the others.

    Raises:
        UserError: no such engine, it cannot run this model, or its package is missing.
    """
    if name == "auto":
        name = _automatic(model)
    if name not in ENGINES:
        raise unknown("engine", name, ("auto", *ENGINES))
    if isinstance(model, ExportedFile):
        return _open_exported(model, name, threads)
    if isinstance(model, QuantizedNetwork):
        return _open_quantized(model, name, threads)
    return _open_float(model, name, threads)


def _open_float(network: SRNetwork, name: str, threads: int | None) -> Engine:
    if name == "torch":
        return FloatEngine(network)
    if name not in ("onnxruntime", "openvino"):
        raise UserError(f"the engine '{name}' runs quantised networks; this is a float one (use torch)")
    description = Description.from_json(describe_network(network))
    return _open_onnx(float_onnx(network).SerializeToString(), description, name, threads)


def _open_quantized(network: QuantizedNetwork, name: str, threads: int | None) -> Engine:
    if name == "simulate":
        return SimulationEngine(network)
    graph = lower(network)
    if name == "reference":
        return ReferenceEngine(graph)
    if name == "torch":
        return IntegerTorchEngine(graph)
    description = Description.from_json(describe_graph(graph))
    if name == "litert":
        return LiteRTEngine(graph, description, threads)
    return _open_onnx(to_onnx(graph).SerializeToString(), description, name, threads)


def _open_exported(model: ExportedFile, name: str, threads: int | None) -> Engine:
    if name not in model.engines():
        able = " or ".join(model.engines())
        raise UserError(f"the engine '{name}' cannot run '{model.path.name}'; {able} can")
    if model.path.suffix == ".tflite":
        return LiteRTEngine(model.path.read_bytes(), model.description, threads)
    if model.path.suffix == ".onnx":
        return _open_onnx(model.path.read_bytes(), model.description, name, threads)
    return OpenVINOEngine(model.path, model.description, threads)


def _open_onnx(model: bytes, description: Description, name: str, threads: int | None) -> Engine:
    if name == "onnxruntime":
        return OnnxRuntimeEngine(model, description, threads)
    return OpenVINOEngine(model, description, threads)


def installed_engines() -> list[str]:
    """The engines whose packages are installed, in the order of `ENGINES`."""
    return [name for name in ENGINES if name not in _PACKAGES or find_spec(_PACKAGES[name])]


def able_engines(model: Model) -> list[str]:
    """The installed engines that can run a model, in the order of `ENGINES`."""
    installed = installed_engines()
    if isinstance(model, ExportedFile):
        return [name for name in installed if name in model.engines()]
    if isinstance(model, SRNetwork):
        return [name for name in installed if name in ("torch", "onnxruntime", "openvino")]
    return [name for name in installed if name != "litert" or not model.gates()]


def _automatic(model: Model) -> str:
    if isinstance(model, SRNetwork):
        return "torch"
    able = able_engines(model)
    return (able or model.engines())[-1] if isinstance(model, ExportedFile) else able[-1]
