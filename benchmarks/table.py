"""The result table: PSNR of float networks and of their 8-bit forms on real engines; prints Markdown.

    python benchmarks/table.py --weights FOLDER --benchmarks FOLDER --calibration FOLDER [--into README.md]

Every network is quantised here and now with the settings that the table names, so the table is reproducible from
the weights alone.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import machine
import tables

import srquant
from srquant.networks import SRNetwork
from srquant.quantizers import QuantizedNetwork

NETWORKS = ("edsr8_x2", "srresnet8_bn_x4", "abpn_x3", "xlsr_x3", "imdn_x2")
ENGINES = {
    "reference": "integer reference",
    "torch": "torch",
    "onnxruntime": "ONNX Runtime",
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
    parser.add_argument("--into", type=Path, help="document to put the table into, as well")
    arguments = parser.parse_args()

    how = srquant.QuantizationConfig(ranges=arguments.ranges, percentile=arguments.percentile, exact=arguments.exact)
    which = srquant.CalibrationConfig(images=arguments.images)
    folders = [arguments.benchmarks / name for name in arguments.sets]
    rows, notes = [], []
    protocol = ""
    for name in arguments.networks:
        network = _load(arguments.weights, name)
        quantized = srquant.quantize(network, arguments.calibration, how, which)
        notes.append(f"- {name}: {_digest(quantized)}; {quantized.placement}")
        measured = srquant.evaluate(network, folders, "torch")
        protocol = measured.protocol.replace(f"shave {network.info.scale} px", "shave = scale")
        by_engine = {engine: srquant.evaluate(quantized, folders, engine) for engine in arguments.engines}
        for folder in folders:
            scores = [by_engine[engine].datasets[folder.name].psnr for engine in arguments.engines]
            plain = measured.datasets[folder.name].psnr
            rows.append([name, folder.name, *(f"{score:.3f}" for score in (plain, *scores))])
            rows[-1].append(f"{max(scores, key=lambda score, plain=plain: abs(score - plain)) - plain:+.3f}")
        print(f"done: {rows[-1]}", file=sys.stderr, flush=True)
    columns = [
        "network",
        "set",
        "float32",
        *(f"int8, {ENGINES[engine]}" for engine in arguments.engines),
        "largest change",
    ]
    report = "\n".join(
        [
            tables.table(columns, rows),
            "",
            f"PSNR in dB. {protocol}. Quantisation: {_settings(how)}. Calibration: {_settings(which)}. "
            f"{machine.describe().splitlines()[-1]}",
            "",
            "Bits of each network, and the first digits of the SHA-256 of its integer weights:",
            "",
            *notes,
        ]
    )
    print(report)
    if arguments.into is not None:
        tables.insert(arguments.into, "scores", report)


def _load(folder: Path, name: str) -> SRNetwork:
    network = srquant.load(folder / f"{name}.safetensors")
    if not isinstance(network, SRNetwork):
        raise SystemExit(f"'{name}' is no float checkpoint")
    return network


def _settings(config: srquant.QuantizationConfig | srquant.CalibrationConfig) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {str(value).lower()}" for key, value in config.model_dump().items())


def _digest(network: QuantizedNetwork) -> str:
    """Of the codes of all convolutions, in their order."""
    digest = hashlib.sha256()
    for convolution in network.convolutions().values():
        codes = convolution.codes()
        for part in (codes.weight, codes.bias, codes.steps):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    try:
        main()
    except srquant.UserError as error:
        raise SystemExit(f"error: {error}") from error
