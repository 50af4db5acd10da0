"""A float network as an int8 LiteRT (TFLite) file by litert-torch and ai-edge-quantizer, in an environment of theirs.

For networks with layers that the integer graph does not know, and to compare with the files that srquant writes. The
two packages bring a gigabyte and pin others, so they are called as a process: the network goes there as an exported
program, the calibration pictures as an array, and `litert_torch_convert` runs under the Python that has them. What
comes back is given pixels at both ends and srquant's description. Nothing of it is proven equal to a reference.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from srquant.config import CalibrationConfig
from srquant.engines import litert_torch_convert as script
from srquant.engines.exported import Description
from srquant.engines.litert import LiteRTEngine
from srquant.errors import UserError
from srquant.imaging.crops import Crop, calibration_crops
from srquant.integer.litert import check_shape, file_name, file_texts
from srquant.integer.litert_file import FileBuilder, read_model, real_operators, schema
from srquant.integer.litert_writer import PictureKind
from srquant.methods.cfqp import FEWEST, representative
from srquant.networks.cost import halo
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers.folding import fold, in_pixel_units

_BITS = {"weight_bits": 8, "activation_bits": 8, "exact": False}


def convert(
    network: SRNetwork,
    data: Path,
    shape: tuple[int, int],
    python: str,
    calibration: CalibrationConfig,
    progress: Progress,
    *,
    io: PictureKind = "uint8",
    allow_float: bool = False,
) -> bytes:
    """The file of a float network for pictures of one size.

    Args:
        network: not changed.
        data: folder of pictures to take the ranges of the activations from.
        shape: height and width of the pictures, and of the crops.
        python: the interpreter of an environment with litert-torch and ai-edge-quantizer.
        calibration: how many pictures and which; its `crop` gives way to `shape`.
        progress: told of the conversion, of few pictures, and of what stays in float32.
        io: what pictures go in and come out as; int8 is the pixel minus 128.
        allow_float: take a file in which operations stay in float32 instead of refusing it.

    Raises:
        UserError: the interpreter or a package is missing, the network does not take this size, the pictures cannot
            be used, the conversion fails, operations stay in float, or LiteRT cannot load the result.
    """
    schema()
    check_shape(network.info.size_multiple, *shape)
    program = _interpreter(python)
    calibration = calibration.model_copy(update={"crop": max(shape)})
    found = calibration_crops(data, network.info.scale, calibration, network.info.channels)
    crops = [to_shape(crop, *shape) for crop in found]
    pictures, records = representative(network, crops, calibration)
    if len(pictures) < FEWEST:
        progress.warn(f"ranges from {len(pictures)} pictures: with fewer than {FEWEST} they may be small")
    progress.start("converting by litert-torch", 1)
    try:
        content, versions = _converted(program, network, torch.cat(pictures).permute(0, 2, 3, 1).numpy())
        progress.advance()
    finally:
        progress.finish()
    try:
        model = _within(read_model(content), content)
        (_,), (_,) = model.subgraphs[0].inputs, model.subgraphs[0].outputs
        real = Counter(kind for _, kind in real_operators(model))
    except Exception as error:  # the reader's errors have types of their own
        raise UserError("litert-torch wrote no LiteRT file that takes one picture and gives one") from error
    told = f"{real.total()} operations in float32 ({', '.join(f'{n} {kind}' for kind, n in sorted(real.items()))})"
    if real and not allow_float:
        raise UserError(f"ai-edge-quantizer leaves {told}; --allow-float (allow_float in Python) takes them")
    if real:
        progress.warn(f"ai-edge-quantizer left {told}")
    packages = f"litert-torch {versions['litert-torch']} and ai-edge-quantizer {versions['ai-edge-quantizer']}"
    provenance = {
        "converter": packages,
        "method": script.RECIPE,
        "placement": f"{script.RECIPE} by {packages}" + f", {told}" * bool(real),
        "quantization": _BITS,
        "calibration": {**calibration.model_dump(), "pictures": records},
    }
    description = Description(network.info, _halo(network), provenance)
    made = _described(model, description, shape, io)
    LiteRTEngine(made, description, 1)
    return made


def to_shape(crop: Crop, height: int, width: int) -> Crop:
    """A crop cut to height x width, or mirrored up to it at the bottom and the right; its record tells that."""
    pixels = crop.pixels[:height, :width]
    missing = height - pixels.shape[0], width - pixels.shape[1]
    pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    return Crop(pixels, {**crop.record, "brought_to": [height, width]})


def _interpreter(python: str) -> str:
    """The path of an interpreter, given by a path or by a name to look for.

    Raises:
        UserError: there is none.
    """
    found = shutil.which(python)
    if found is None:
        raise UserError(
            f"there is no Python '{python}' that could be run; one with litert-torch is made by "
            f"python3 -m venv litert-env; litert-env/bin/python {_installation()}"
        )
    return found


def _halo(network: SRNetwork) -> int | None:
    """How far a network looks; None, too, where a layer does not tell."""
    try:
        return halo(network.collapsed())
    except TypeError:
        return None


def _save_program(network: SRNetwork, pictures: NDArray[np.uint8], path: Path) -> None:
    """Write the network in pixel units, without the clip at its output, for one picture of this size."""
    _, height, width, channels = pictures.shape
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.export.export(_plain(network), (torch.zeros(1, channels, height, width),))
        torch.export.save(program, path)


def _plain(network: SRNetwork) -> fx.GraphModule:
    """The network folded; in pixel units only, clip and all, where a layer cannot be folded."""
    try:
        return fold(network)
    except UserError:
        return in_pixel_units(network)


def _converted(program: str, network: SRNetwork, pictures: NDArray[np.uint8]) -> tuple[bytes, dict[str, str]]:
    """Have the script convert a network; the file, and the versions of what wrote it."""
    with tempfile.TemporaryDirectory(prefix="srquant-") as name:
        folder = Path(name)
        _save_program(network, pictures, folder / script.NETWORK)
        np.save(folder / script.PICTURES, pictures)
        last = _run_script(program, folder)
        try:
            versions = json.loads((folder / script.TOLD).read_text(encoding="utf-8"))
            return (folder / script.FILE).read_bytes(), versions
        except OSError as error:
            raise UserError(f"litert-torch ended well but wrote no file: {last}") from error


def _run_script(program: str, folder: Path) -> str:
    """Run the script on a folder; the last line of what it said.

    Isolated (-I), so that neither the folder of the script nor the caller's variables hide the packages.
    """
    try:
        done = subprocess.run(
            [program, "-I", str(Path(script.__file__)), str(folder)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise UserError(f"cannot run '{program}': {error.strerror}") from error
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it said nothing"
    if done.returncode == script.MISSING:
        raise UserError(f"'{program}' has no package '{last}': {program} {_installation()}")
    step = "LiteRT cannot run what litert-torch wrote" if (folder / script.TOLD).exists() else "litert-torch failed"
    if done.returncode < 0:
        raise UserError(f"{step}: ended by signal {-done.returncode}; its last line: {last}")
    if done.returncode > 0:
        raise UserError(f"{step}: {last}")
    return last


def _installation() -> str:
    """What to hand to a Python so that it can convert; the program it reads is of this version of PyTorch."""
    packages = [name for name in script.PACKAGES.values() if name != "torch"]
    return f'-m pip install "torch=={torch.__version__.partition("+")[0]}" {" ".join(packages)}'


def _within(model: Any, content: bytes) -> Any:
    """The model with all constants in its tables: those of larger files stand behind them, told by their place."""
    for buffer in model.buffers:
        if buffer.size:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def _described(model: Any, description: Description, shape: tuple[int, int], io: PictureKind) -> bytes:
    """The file with pixels at both ends, named as in the files that srquant writes, with its description."""
    builder, info, (height, width) = FileBuilder(model), description.info, shape
    larger = [1, height * info.scale, width * info.scale, info.channels]
    source = _picture(builder, [1, height, width, info.channels], io)
    target = _enlarged(builder, larger, io)
    converter = description.provenance["converter"]
    texts = file_texts(description, height, width, io, [f"any operation (converted by {converter})"])
    return builder.finish({"picture": source}, {"enlarged": target}, file_name(description), texts)


def _picture(builder: FileBuilder, shape: Sequence[int], io: PictureKind) -> int:
    """The input that takes pixels: the file's own, or one in front of it."""
    (first,) = map(int, builder.graph.inputs)
    _check_end(builder, first, shape, "takes")
    tensor = builder.graph.tensors[first]
    if _holds_pixels(tensor, io):
        tensor.name = b"picture"
        return first
    given = builder.tensor("picture", shape, io, 1.0, _zero(io))
    kind, options = ("QUANTIZE", "QuantizeOptions")
    if tensor.type == schema().TensorType.FLOAT32:
        kind, options = ("DEQUANTIZE", "DequantizeOptions")
    builder.operator(kind, [given], first, options)
    builder.graph.operators.insert(0, builder.graph.operators.pop())
    return given


def _enlarged(builder: FileBuilder, shape: Sequence[int], io: PictureKind) -> int:
    """The output that gives pixels: the file's own, or one behind it."""
    (last,) = map(int, builder.graph.outputs)
    _check_end(builder, last, shape, "gives")
    tensor = builder.graph.tensors[last]
    if _holds_pixels(tensor, io):
        tensor.name = b"enlarged"
        return last
    made = builder.tensor("enlarged", shape, io, 1.0, _zero(io))
    return builder.operator("QUANTIZE", [last], made, "QuantizeOptions")


def _check_end(builder: FileBuilder, tensor: int, shape: Sequence[int], does: str) -> None:
    found = [int(length) for length in builder.shape(tensor)]
    if found != list(shape):
        raise UserError(f"litert-torch wrote a file that {does} {found} instead of {list(shape)}")


def _holds_pixels(tensor: Any, io: PictureKind) -> bool:
    """Whether the codes of a tensor are pixels as they are to go in and come out."""
    grid = tensor.quantization
    if tensor.type != getattr(schema().TensorType, io.upper()) or grid is None or grid.scale is None:
        return False
    return list(grid.scale) == [1.0] and list(grid.zeroPoint) == [_zero(io)]


def _zero(io: PictureKind) -> int:
    return 0 if io == "uint8" else -128
