"""srquant: super-resolution networks at 2, 3, 4 and 8 bit that really run as integers.

import srquant

network = srquant.load("edsr.safetensors")
quantized = srquant.quantize(network, "pictures/")
srquant.save(quantized, "edsr-int8.safetensors")
srquant.export(quantized, "edsr-int8.onnx")
print(srquant.evaluate("edsr-int8.onnx", "Set5/", engine="onnxruntime"))
srquant.upscale("edsr-int8.onnx", "small.png", "large.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srquant.config import CalibrationConfig, QuantizationConfig
from srquant.errors import UserError

if TYPE_CHECKING:
    from srquant.engines import load, open_engine
    from srquant.experiments import train
    from srquant.jobs import evaluate, export, quantize, upscale
    from srquant.quantizers import save_artefact as save

__version__ = "0.1.0"

__all__ = [
    "CalibrationConfig",
    "QuantizationConfig",
    "UserError",
    "evaluate",
    "export",
    "load",
    "open_engine",
    "quantize",
    "save",
    "train",
    "upscale",
]

_LAZY = {
    "evaluate": ("srquant.jobs", "evaluate"),
    "export": ("srquant.jobs", "export"),
    "load": ("srquant.engines", "load"),
    "open_engine": ("srquant.engines", "open_engine"),
    "quantize": ("srquant.jobs", "quantize"),
    "save": ("srquant.quantizers", "save_artefact"),
    "train": ("srquant.experiments", "train"),
    "upscale": ("srquant.jobs", "upscale"),
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used: PyTorch takes seconds, `srquant --help` must not."""
    if name not in _LAZY:
        raise AttributeError(f"module 'srquant' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)
