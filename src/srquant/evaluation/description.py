"""What a model is, as lines for people."""

from __future__ import annotations

from pathlib import Path

from srquant.config import QuantizationConfig
from srquant.engines import Description, ExportedFile, Model
from srquant.engines.exported import files_of
from srquant.integer import lower
from srquant.networks import NETWORKS
from srquant.networks.cost import halo, macs, parameters
from srquant.networks.info import NetworkInfo, SRNetwork
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.offsets import ChannelQuantizer

_HEIGHT, _WIDTH = 180, 320
_LUMA = "luma (Y of full-range BT.601) through the network; Cb and Cr of a colour picture by bicubic"


def describe_model(model: Model, path: Path) -> list[tuple[str, str]]:
    """Name and value of every fact worth showing."""
    size = sum(file.stat().st_size for file in files_of(path))
    on_disk = ("file size", f"{size / 1000:.1f} kB")
    if isinstance(model, ExportedFile):
        told = model.description
        return [*_outside(told.info, told.halo), *_exported(model), *litert_facts(told), on_disk]
    if isinstance(model, SRNetwork):
        return [("kind", "float network"), *_outside(model.info, halo(model.collapsed())), *_cost(model), on_disk]
    return [("kind", "quantised network"), *_outside(model.info, model.halo), *_quantized(model), on_disk]


def litert_facts(told: Description) -> list[tuple[str, str]]:
    """What pictures a LiteRT file takes, and whether it is proven equal to the reference; nothing of other files."""
    if told.shape is None:
        return []
    proof = "proven, bit for bit" if not told.unequal else f"not proven for {', '.join(told.unequal)}"
    return [
        ("pictures", f"{told.pictures} of {told.shape[0]}x{told.shape[1]} (height x width) only"),
        ("equal to the reference", proof),
    ]


def _outside(info: NetworkInfo, radius: int | None) -> list[tuple[str, str]]:
    field = "whole picture" if radius is None else f"{2 * radius + 1} px (halo {radius})"
    network = [("network", info.name), ("scale", f"x{info.scale}"), ("receptive field", field)]
    return network if info.channels == 3 else [*network, ("colours", _LUMA)]


def _cost(network: SRNetwork) -> list[tuple[str, str]]:
    plain = network.collapsed()
    billions = macs(plain, _HEIGHT, _WIDTH, network.info.channels) / 1e9
    trained = "" if plain is network else f" ({parameters(network):,} in the training form, which this file holds)"
    return [
        ("parameters", f"{parameters(plain):,}{trained}"),
        (
            "MACs",
            f"{billions:.2f} G for {_WIDTH}x{_HEIGHT} -> {_WIDTH * network.info.scale}x{_HEIGHT * network.info.scale}",
        ),
    ]


def _quantized(model: QuantizedNetwork) -> list[tuple[str, str]]:
    kind = NETWORKS[model.info.name]
    network = kind.from_config(kind.config_type.from_dict(model.network_config))
    how = model.quantization
    return [
        *_cost(network),
        ("bits", f"weights {how.weight_bits}, activations {how.activation_bits}"),
        ("placement", str(model.placement)),
        ("scales", "exact: powers of two, even zero points" if how.exact else "any float32"),
        *_origin(model),
        *_gates(model),
        *_offsets(model),
        ("packed weights", f"{model.storage_bytes() / 1000:.1f} kB (float32: {4 * parameters(network) / 1000:.1f} kB)"),
    ]


def _origin(model: QuantizedNetwork) -> list[tuple[str, str]]:
    """Where its grids come from: calibration, or training and its budget."""
    how, told = model.quantization, model.training_facts
    if not told:
        pictures = model.calibration.get("pictures", [])
        percentile = f" {how.percentile}" * (how.ranges == "percentile")
        given = " of a calibration file" if "ranges_file_sha256" in model.calibration else ""
        return [
            ("ranges", f"{how.ranges}{percentile} over {len(pictures)} crops{given}"),
            ("channels", "equalised" if model.equalized else "as they were"),
            *_ends(how),
        ]
    steps = told["epochs"] * told["steps_per_epoch"]
    score = told["validation_psnr"]
    return [
        (
            "method",
            f"{model.method}, trained {steps} steps of {told['batch']} patches of {told['patch']}, seed {told['seed']}",
        ),
        ("validation", "none" if score is None else f"{score:.3f} dB at step {told['step']}"),
    ]


def _ends(how: QuantizationConfig) -> list[tuple[str, str]]:
    """What is not as by default at the output."""
    kept = [("clip", "kept as an operation")] if how.clip == "keep" else []
    return kept + ([("output", "a grid of its own")] if how.output_range == "calibrated" else [])


def _gates(model: QuantizedNetwork) -> list[tuple[str, str]]:
    """What gates cost, where there are any."""
    count = len(model.gates())
    text = f"{count} tensors get their scale picture by picture, by a gate in float32; pictures cannot be tiled"
    return [("gates", text)] if count else []


def _offsets(model: QuantizedNetwork) -> list[tuple[str, str]]:
    """What offsets of channels are held in, and the tensors where they leave limits (how many of two)."""
    tensors = [q for q in model.activation_quantizers().values() if isinstance(q, ChannelQuantizer)]
    if not tensors:
        return []
    bits, limits = tensors[0].offset_bits, lower(model).channel_limits()
    kinds = {
        f"levels per channel ({bits or 8} bit)": sum(q.lowest is not None for q in tensors),
        f"a factor per channel ({'float32' if bits is None else f'{bits} bit'})": sum(
            q.factors is not None for q in tensors
        ),
    }
    held = ", ".join(f"{count} tensor{'s' * (count > 1)} with {kind}" for kind, count in kinds.items() if count)
    count = sum(limits.values())
    remain = "1 limit per channel remains" if count == 1 else f"{count} limits per channel remain"
    told = [("offsets", f"{held}; {remain}")]
    listed = ", ".join(f"{name.removeprefix('quantizers_')} ({count})" for name, count in limits.items())
    return [*told, ("limits", listed)] if limits else told


def _exported(model: ExportedFile) -> list[tuple[str, str]]:
    told = model.description.provenance
    if not told:
        return [("kind", "exported float network")]
    how = told["quantization"]
    return [
        ("kind", "exported quantised network"),
        ("bits", f"weights {how['weight_bits']}, activations {how['activation_bits']}"),
        ("placement", told["placement"]),
        ("scales", "exact: powers of two, even zero points" if how["exact"] else "any float32"),
    ]
