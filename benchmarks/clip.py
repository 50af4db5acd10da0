"""What a clip at the output costs: exported files with and without it on LiteRT and OpenVINO; prints Markdown.

    python benchmarks/clip.py --model abpn_x3.safetensors --calibration FOLDER [--images 10] [--size 360x640]
        [--threads 1 2] [--rounds 40] [--into README.md]

Three forms: the clip removed, which the saturating output makes superfluous; kept as an operation of its own; kept,
with an output grid from the values as converters choose it. All files, on both engines, run in this process, one
after the other in every round and in an order drawn anew, first with one number of threads and then with the next.
Pictures go in and come out as uint8.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import machine
import speed
import tables

import srquant
from srquant.evaluation.verification import drawn_picture
from srquant.networks import SRNetwork

FORMS = {
    "removed": srquant.QuantizationConfig(),
    "kept": srquant.QuantizationConfig(clip="keep"),
    "kept, calibrated output": srquant.QuantizationConfig(clip="keep", output_range="calibrated"),
}
SUFFIXES = {"litert": ".tflite", "openvino": ".onnx"}
TITLES = {"litert": "LiteRT", "openvino": "OpenVINO"}
Key = tuple[str, int, str]
"""Engine, threads, form."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="float checkpoint of a network with a clip")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of pictures to take ranges from")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--size", default="360x640", help="height x width of the input")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))

    network = srquant.load(arguments.model)
    if not isinstance(network, SRNetwork):
        raise SystemExit(f"'{arguments.model}' is no float checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        files = _files(network, arguments, Path(folder), (height, width))
        picture = drawn_picture(network.info.channels, height, width)
        times: dict[Key, list[float]] = {}
        for threads in arguments.threads:
            engines = {
                (engine, threads, form): srquant.open_engine(srquant.load(path), engine, threads=threads)
                for (engine, form), path in files.items()
            }
            times |= speed.measure(engines, picture, arguments.rounds)
    report = _report(network, arguments, height, width, times)
    print(report, flush=True)
    if arguments.into is not None:
        tables.insert(arguments.into, "clip", report)


def _files(
    network: SRNetwork, arguments: argparse.Namespace, folder: Path, shape: tuple[int, int]
) -> dict[tuple[str, str], Path]:
    """A file for each engine and form."""
    files = {}
    which = srquant.CalibrationConfig(images=arguments.images)
    quantized = {form: srquant.quantize(network, arguments.calibration, how, which) for form, how in FORMS.items()}
    for engine, suffix in SUFFIXES.items():
        for number, form in enumerate(FORMS):
            path = files[engine, form] = folder / f"{number}{suffix}"
            srquant.export(quantized[form], path, shape=shape if engine == "litert" else None)
    return files


def _report(
    network: SRNetwork, arguments: argparse.Namespace, height: int, width: int, times: dict[Key, list[float]]
) -> str:
    rows = []
    for (engine, threads, form), taken in times.items():
        row = [TITLES[engine], str(threads), form, f"{min(taken):.1f}", f"{median(taken):.1f}"]
        rounds = zip(times[engine, threads, "removed"], taken, strict=True)
        saving = median(1 - removed / kept for removed, kept in rounds)
        rows.append([*row, "" if form == "removed" else f"{100 * saving:.0f} %"])
    columns = ["engine", "threads", "clip", "best ms", "median ms", "saving"]
    scale = network.info.scale
    return "\n".join(
        [
            f"**{arguments.model.stem}**: {width}x{height} -> {width * scale}x{height * scale}, {arguments.rounds} "
            f"rounds in turn, ranges from {arguments.images} pictures; saving: 1 - removed/kept, the median of all "
            "rounds.  ",
            machine.describe(),
            "",
            tables.table(columns, rows),
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except srquant.UserError as error:
        raise SystemExit(f"error: {error}") from error
