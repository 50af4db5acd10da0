"""The part of the route through litert-torch that runs where that is installed; it imports nothing of srquant.

`python -I litert_torch_convert.py FOLDER` reads the network and the pictures in a folder and writes the file and what
made it beside them. It ends with `MISSING`, and the package's name as the last line of standard error, where one is
not installed.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

NETWORK = "network.pt2"
"""Read: an exported program, float32 [1, C, H, W] of pixel values in and out."""
PICTURES = "pictures.npy"
"""Read: calibration pictures, uint8 [N, H, W, C]."""
FILE = "network.tflite"
"""Written: float weights and activations became int8, [1, H, W, C] in and out."""
TOLD = "versions.json"
"""Written when the file is there, before it is tried: the versions of the converting packages by name."""

PACKAGES = {"torch": "torch", "litert_torch": "litert-torch", "ai_edge_quantizer": "ai-edge-quantizer"}
"""What has to be installed: module and package."""
RECIPE = "static_wi8_ai8"
MISSING = 3
_SIGNATURE = "serving_default"
_PEAK = 255.0


def main(folder: Path) -> int:
    """Convert what lies in a folder; returns the exit code."""
    for module, package in PACKAGES.items():
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            print(package, file=sys.stderr)
            return MISSING
    _convert(folder)
    told = {package: version(package) for package in PACKAGES.values()}
    (folder / TOLD).write_text(json.dumps(told), encoding="utf-8")
    _try(folder / FILE)
    return 0


def _convert(folder: Path) -> None:
    import numpy as np

    torch: Any = import_module("torch")
    litert_torch: Any = import_module("litert_torch")
    recipe: Any = import_module("ai_edge_quantizer.recipe")
    quantizer: Any = import_module("ai_edge_quantizer.quantizer")
    pictures, plain = np.load(folder / PICTURES), folder / "float.tflite"
    network = torch.export.load(folder / NETWORK).module()
    network = litert_torch.to_channel_last_io(network, args=[0], outputs=[0])
    litert_torch.convert(network, (torch.from_numpy(pictures[:1]).float(),)).export(str(plain))
    signature, argument, pixels = _ends(plain)
    worker = quantizer.Quantizer(str(plain), getattr(recipe, RECIPE)())
    ranges: dict[str, Any] = {}
    for picture in pictures:  # one by one: of several at once, the quantiser takes moving averages
        given = {signature: [{argument: picture[None].astype(np.float32)}]}
        _widen(ranges, worker.calibrate(given, num_threads=torch.get_num_threads()))
    for name in pixels:
        ranges[name] = {end: np.full_like(ranges[name][end], at) for end, at in (("min", 0.0), ("max", _PEAK))}
    worker.quantize(ranges).export_model(str(folder / FILE))


def _try(path: Path) -> None:
    """Run a file once: LiteRT crashes on some, which has to happen here."""
    runtime: Any = import_module("ai_edge_quantizer.utils.tfl_interpreter_utils")
    runtime.create_tfl_interpreter(str(path), num_threads=1, preserve_all_tensors=False).invoke()


def _widen(ranges: dict[str, Any], found: dict[str, Any]) -> None:
    """Let ranges hold those of one more picture."""
    import numpy as np

    for name, one in found.items():
        known = ranges.get(name)
        if known and one:
            one = {"min": np.minimum(known["min"], one["min"]), "max": np.maximum(known["max"], one["max"])}
        ranges[name] = one or known


def _ends(path: Path) -> tuple[str, str, list[str]]:
    """The signature of a file, its argument, and the tensors that hold pixels.

    These are the input, the output, and what is only moved to become the output.
    """
    tables: Any = import_module("ai_edge_quantizer.qtyping")
    reader: Any = import_module("ai_edge_quantizer.utils.tfl_flatbuffer_utils")
    model = reader.read_model(str(path))
    graph, (signature,) = model.subgraphs[0], model.signatureDefs
    moves = (tables.BuiltinOperator.RESHAPE, tables.BuiltinOperator.TRANSPOSE)
    makers = {int(operator.outputs[0]): operator for operator in graph.operators}
    read = [int(tensor) for operator in graph.operators for tensor in operator.inputs]
    tensor = int(graph.outputs[0])
    pixels = [int(graph.inputs[0]), tensor]
    while tensor in makers and model.operatorCodes[makers[tensor].opcodeIndex].builtinCode in moves:
        tensor = int(makers[tensor].inputs[0])
        if read.count(tensor) > 1:  # read by more than the output: not only pixels
            break
        pixels.append(tensor)
    names = [graph.tensors[tensor].name.decode() for tensor in pixels]
    return signature.signatureKey.decode(), signature.inputs[0].name.decode(), names


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
