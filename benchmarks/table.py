"""The result table: PSNR of float networks and of their 8-bit forms on real engines; prints Markdown.

    python benchmarks/table.py --weights FOLDER --benchmarks FOLDER --calibration FOLDER \
        [--images 20] [--work FOLDER] [--into README.md]

Every network is quantised with the settings that the table names, so the table is reproducible from the weights
alone. With `--work`, artefacts and scores are kept there as they are made, and a run that is begun again, or that is
split by `--networks`, goes on behind them; take another folder to measure everything anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import machine
import tables

import srquant
from srquant.engines import Model
from srquant.files import sha256
from srquant.metrics import Protocol
from srquant.networks import SRNetwork
from srquant.quantizers import QuantizedNetwork

NETWORKS = (
    "abpn_x3",
    "xlsr_x3",
    "espcn_y_x2",
    "espcn_y_x4",
    "fsrcnn_y_x2",
    "fsrcnn_y_x4",
    "plainusr_u_x2",
    "plainusr_u_x4",
    "plainusr_s_x4",
    "span28_x4",
    "rlfn_x2",
    "rlfn_x4",
    "rfdn_aim_x4",
    "imdn_x2",
    "imdn_x4",
    "edsr8_x2",
    "srresnet8_bn_x4",
)
FLOAT = "float32"
ENGINES = {
    "reference": "integer reference",
    "torch": "torch",
    "onnxruntime": "ONNX Runtime",
    "litert": "LiteRT",
    "openvino": "OpenVINO",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of float checkpoints")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of benchmark sets")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of pictures to take ranges from")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names of checkpoints, without suffix")
    parser.add_argument("--sets", nargs="+", default=["Set5"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--ranges", default="percentile", choices=("minmax", "percentile", "mse"))
    parser.add_argument("--percentile", type=float, default=srquant.QuantizationConfig().percentile)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--images", type=int, default=srquant.CalibrationConfig().images)
    parser.add_argument("--work", type=Path, help="folder to keep artefacts and scores in")
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = _measured(arguments, arguments.work or Path(temporary))
    print(report)
    if arguments.into is not None:
        tables.insert(arguments.into, "scores", report)


class Scores:
    """PSNR by model, set and engine, appended to a file as soon as each is known.

    Args:
        folder: what to keep the file in.
        sets: folders of the benchmark sets.
    """

    def __init__(self, folder: Path, sets: Sequence[Path]) -> None:
        self._file, self.sets = folder / "scores.jsonl", sets
        self._kept: dict[tuple[str, ...], float] = {}
        if self._file.is_file():
            for line in self._file.read_text().splitlines():
                *key, psnr = json.loads(line)
                self._kept[tuple(key)] = psnr

    def of(self, model: Model, digest: str, engine: str) -> list[float]:
        """One per set, measured where it is not kept."""
        found = []
        for folder in self.sets:
            key = digest, folder.name, engine
            if key not in self._kept:
                on = "torch" if engine == FLOAT else engine
                self._kept[key] = srquant.evaluate(model, folder, on).datasets[folder.name].psnr
                with self._file.open("a") as file:
                    file.write(json.dumps([*key, self._kept[key]]) + "\n")
            found.append(self._kept[key])
        return found


def _measured(arguments: argparse.Namespace, work: Path) -> str:
    """The report; see the module."""
    how = srquant.QuantizationConfig(ranges=arguments.ranges, percentile=arguments.percentile, exact=arguments.exact)
    which = srquant.CalibrationConfig(images=arguments.images)
    work.mkdir(parents=True, exist_ok=True)
    scores = Scores(work, [arguments.benchmarks / name for name in arguments.sets])
    rows, notes = [], []
    for name in arguments.networks:
        weights, artefact = arguments.weights / f"{name}.safetensors", work / f"{name}.safetensors"
        network = srquant.load(weights)
        if not isinstance(network, SRNetwork):
            raise SystemExit(f"'{name}' is no float checkpoint")
        quantized = _quantized(network, artefact, arguments.calibration, how, which)
        notes.append(f"- {name}: {sha256(artefact)[:12]}; {quantized.placement}")
        plain = scores.of(network, sha256(weights), FLOAT)
        by_engine = [scores.of(quantized, sha256(artefact), engine) for engine in arguments.engines]
        for index, folder in enumerate(scores.sets):
            changes = [found[index] - plain[index] for found in by_engine]
            shown = (f"{found[index]:.3f}" for found in (plain, *by_engine))
            rows.append([name, folder.name, *shown, f"{max(changes, key=abs):+.3f}"])
            print(f"done: {rows[-1]}", file=sys.stderr, flush=True)
    columns = ["network", "set", FLOAT, *(f"int8, {ENGINES[e]}" for e in arguments.engines), "largest change"]
    protocol = str(Protocol.standard(2)).replace("shave 2 px", "shave = scale")
    return "\n".join(
        [
            tables.table(columns, rows),
            "",
            f"PSNR in dB. {protocol}. Quantisation: {_settings(how)}. Calibration: {_settings(which)}. "
            f"{machine.describe().splitlines()[-1]}",
            "",
            "Bits of each network, and the first digits of the SHA-256 of its artefact:",
            "",
            *notes,
        ]
    )


def _quantized(
    network: SRNetwork,
    artefact: Path,
    pictures: Path,
    how: srquant.QuantizationConfig,
    which: srquant.CalibrationConfig,
) -> QuantizedNetwork:
    """The artefact's network, made where it is missing."""
    if not artefact.is_file():
        srquant.save(srquant.quantize(network, pictures, how, which), artefact)
    found = srquant.load(artefact)
    if not isinstance(found, QuantizedNetwork):
        raise SystemExit(f"'{artefact}' is no artefact")
    settings = which.model_dump()
    if found.quantization != how or {key: found.calibration[key] for key in settings} != settings:
        raise SystemExit(f"'{artefact}' was quantised with other settings: take another folder")
    return found


def _settings(config: srquant.QuantizationConfig | srquant.CalibrationConfig) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {str(value).lower()}" for key, value in config.model_dump().items())


if __name__ == "__main__":
    try:
        main()
    except srquant.UserError as error:
        raise SystemExit(f"error: {error}") from error
