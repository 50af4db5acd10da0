"""What a clip at the output costs: exported files with and without it on LiteRT and OpenVINO; prints Markdown.

    python benchmarks/clip.py --model abpn_x3.safetensors --calibration FOLDER [--images 10] [--size 360x640]
        [--threads 1 2] [--rounds 40] [--into README.md]

Forms: the clip removed, which the saturating output makes superfluous; kept, as srquant computes it; kept, with an
output grid from the values; and on LiteRT that grid with the two operations of published files, MINIMUM and a RELU
between two grids. All files, on both engines, run in this process, one
after the other in every round and in an order drawn anew, first with one number of threads and then with the next.
Pictures go in and come out as uint8.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import speed
import tables

import srquant
from srquant.evaluation.verification import drawn_picture
from srquant.integer.litert_file import FileBuilder, read_model, schema
from srquant.networks import SRNetwork

CALIBRATED, PUBLISHED = "kept, calibrated output", "kept, as published files do"
FORMS = {
    "removed": srquant.QuantizationConfig(),
    "kept": srquant.QuantizationConfig(clip="keep"),
    CALIBRATED: srquant.QuantizationConfig(clip="keep", output_range="calibrated"),
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
        if engine == "litert":
            path = files[engine, PUBLISHED] = folder / "published.tflite"
            path.write_bytes(_as_published(files[engine, CALIBRATED].read_bytes()))
    return files


def _as_published(content: bytes) -> bytes:
    """A LiteRT file whose clip's lower end and step to the picture grid are one RELU, as in published files."""
    model = read_model(content)
    builder = FileBuilder(model)
    graph, names = builder.graph, {value: name for name, value in vars(schema().BuiltinOperator).items()}
    kinds = [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators]
    place = kinds.index("MAXIMUM")
    lower_end, step = graph.operators[place : place + 2]
    assert kinds[place + 1] == "DEPTHWISE_CONV_2D", kinds
    builder.operator("RELU", [lower_end.inputs[0]], step.outputs[0])
    graph.operators[place : place + 2] = [graph.operators.pop()]
    ends = {"picture": int(graph.inputs[0])}, {"enlarged": int(graph.outputs[0])}
    return builder.finish(*ends, model.description.decode(), {})


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
    what = (
        f"**{arguments.model.stem}**: {width}x{height} -> {width * scale}x{height * scale}, {arguments.rounds} "
        f"rounds in turn, ranges from {arguments.images} pictures; saving: 1 - removed/kept, the median of all "
        "rounds."
    )
    return tables.page(what, columns, rows)


if __name__ == "__main__":
    try:
        main()
    except srquant.UserError as error:
        raise SystemExit(f"error: {error}") from error
