"""ONNX files on ONNX Runtime's CPU provider."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from srquant.engines.base import Pixels
from srquant.engines.exported import Description
from srquant.errors import UserError, missing_package


class OnnxRuntimeEngine:
    """An ONNX file that takes and gives uint8 [N, H, W, C]."""

    name = "onnxruntime"
    shape: tuple[int, int] | None = None

    def __init__(self, model: bytes, description: Description, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("onnxruntime", "the engine 'onnxruntime'", "onnx") from error
        self.info = description.info
        self.halo = description.halo
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            try:
                self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # the runtime raises its own types, which share no base
                raise UserError(f"ONNX Runtime cannot load the file: {str(error).splitlines()[0]}") from error
            self._float_nodes = _float_nodes(optimized)

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C]."""
        (enlarged,) = self._session.run(None, {"picture": picture[None]})
        return np.asarray(enlarged)[0]

    def left_in_float(self) -> list[str]:
        """What the runtime's own optimised graph computes on real numbers."""
        return self._float_nodes


_INTEGER_KINDS = (
    *("QLinearConv", "QLinearAdd", "QLinearMul", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearConcat"),
    *("Cast", "Clip", "Concat", "DepthToSpace", "Gather", "Identity", "Max", "Min", "Pad", "Reshape", "Shape"),
    *("Slice", "Split", "Transpose"),
)


def _float_nodes(optimized: Path) -> list[str]:
    """Names of the nodes of an optimised file whose kind is not known to work on codes."""
    import onnx

    nodes = onnx.load(optimized).graph.node
    return [node.name for node in nodes if node.op_type not in _INTEGER_KINDS]
