"""ONNX files and OpenVINO models on OpenVINO's CPU plugin."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srquant.engines.base import Pixels
from srquant.engines.exported import METADATA_KEY, Description
from srquant.errors import UserError, missing_package
from srquant.files import check_target

FloatPrecision = Literal["f32", "bf16"]


class OpenVINOEngine:
    """A model that takes and gives uint8 [N, H, W, C].

    Args:
        model: the bytes of an ONNX file, or the path of an XML file.
        description: what the model says about itself.
        threads: processor threads; None leaves the choice to OpenVINO.
        precision: of whatever is not integer. OpenVINO's own default is bf16 on some processors, so it is always
            set: f32 for scores.
    """

    name = "openvino"
    shape: tuple[int, int] | None = None

    def __init__(
        self,
        model: bytes | Path,
        description: Description,
        threads: int | None = None,
        precision: FloatPrecision = "f32",
    ) -> None:
        openvino = _openvino()
        self.info = description.info
        self.halo = description.halo
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            self._model = core.compile_model(core.read_model(model), "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot load the model: {_last_line(error)}") from error
        self._request = self._model.create_infer_request()

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C]."""
        result = self._request.infer({0: np.ascontiguousarray(picture[None])}, share_inputs=True)
        return result[0][0]

    def left_in_float(self) -> list[str]:
        """Computing layers that the compiled model runs on real numbers."""
        found = []
        for node in self._model.get_runtime_model().get_ops():
            told = {key: value.astype(str) for key, value in node.get_rt_info().items()}
            if told.get("layerType") in _COMPUTING and told.get("runtimePrecision") not in ("u8", "i8"):
                found.append(told.get("originalLayersNames", "").split(",")[0] or node.get_friendly_name())
        return found


_COMPUTING = ("Convolution", "Eltwise", "FakeQuantize", "MatMul", "Reduce", "Math")


def save_openvino(model: bytes, description: str, path: Path) -> None:
    """Convert the bytes of an ONNX file to an OpenVINO model: XML at `path` and .bin beside it.

    Raises:
        UserError: the package openvino is missing, or the folder cannot be written.
    """
    openvino = _openvino()
    check_target(path)
    converted = openvino.Core().read_model(model)
    converted.set_rt_info(description, [METADATA_KEY])
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            written = Path(folder) / path.name
            openvino.save_model(converted, written, compress_to_fp16=False)
            written.with_suffix(".bin").replace(path.with_suffix(".bin"))
            written.replace(path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write '{path}': {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", "the engine 'openvino'", "openvino") from error
    return openvino
