"""The artefact: a quantised network in one safetensors file.

Tensors: per convolution `NAME.weight` (codes minus zero points, over spacings, packed at b bits, uint8),
`NAME.zero_points` and `NAME.spacings` (int32), `NAME.expansion` (int32), `NAME.bias` (int32 codes), `NAME.steps`
(float32, the deployed step); per activation `NAME.scale` (float32), `NAME.zero_point` and `NAME.maximum_code` (int32),
or the bounds and weights of its gate; of channels with offsets also `NAME.lowest` (uint8 [C], the first code of each
window) and `NAME.factors` (float32 [C], where a tensor is rounded again by them), or, where offsets have bits of their
own, `NAME.offset_bits` (uint8), `NAME.first` (uint8, the lowest of those codes), `NAME.windows` (how far above it each
window starts, packed at so many bits, uint8) and `NAME.octaves` (the factors' logarithms, packed alike, uint8);
`float.NAME` for what stays in float. The header's metadata holds one JSON text under `srquant_artefact`; its
`structure` is a digest of the traced graph, since the same names would mean other tensors where a network's code
computes in another order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save_file

import srquant
from srquant.config import QuantizationConfig
from srquant.errors import UserError, unknown
from srquant.files import atomic_path
from srquant.networks import NETWORKS
from srquant.quantizers.folding import module_of
from srquant.quantizers.gating import GatedQuantizer, GateWeights, PictureGrid
from srquant.quantizers.grid import Grid
from srquant.quantizers.layers import ActivationQuantizer, LayerCodes
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.offset_codes import PACKED_PARTS, WIDE_PARTS, unpacked_offsets
from srquant.quantizers.offsets import ChannelQuantizer
from srquant.quantizers.packing import pack, unpack
from srquant.quantizers.weights import LARGEST_INT8

METADATA_KEY = "srquant_artefact"
FORMAT = 3


def header(network: QuantizedNetwork) -> dict[str, Any]:
    """What the file says about itself: plain data, the same for the same network."""
    return {
        "format": FORMAT,
        "version": srquant.__version__,
        "network": network.info.name,
        "network_config": network.network_config,
        "quantization": network.quantization.model_dump(),
        "method": network.method,
        "training": network.training_facts,
        "placement": str(network.placement),
        "equalized": network.equalized,
        "joined_sum": network.joined_sum,
        "gated": network.gates(),
        "calibration": network.calibration,
        "structure": _structure(network),
    }


def save_artefact(network: QuantizedNetwork, path: Path | str) -> None:
    """Write the artefact; the same network gives the same bytes.

    Raises:
        UserError: the path cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, convolution in network.convolutions().items():
        codes = convolution.codes()
        tensors[f"{name}.weight"] = torch.from_numpy(pack(_packable(codes).numpy(), convolution.bits))
        tensors[f"{name}.zero_points"] = codes.zero_points
        tensors[f"{name}.spacings"] = codes.spacings
        tensors[f"{name}.expansion"] = torch.tensor(codes.expansion, dtype=torch.int32)
        tensors[f"{name}.bias"] = codes.bias
        tensors[f"{name}.steps"] = codes.steps
    for name, quantizer in network.activation_quantizers().items():
        if isinstance(quantizer, GatedQuantizer):
            tensors |= {f"{name}.{part}": tensor for part, tensor in _gate_tensors(quantizer.picture_grid).items()}
            continue
        grid = quantizer.deployed_grid()
        tensors[f"{name}.scale"] = torch.tensor(grid.scale, dtype=torch.float32)
        tensors[f"{name}.zero_point"] = torch.tensor(grid.zero_point, dtype=torch.int32)
        tensors[f"{name}.maximum_code"] = torch.tensor(grid.maximum_code, dtype=torch.int32)
        if isinstance(quantizer, ChannelQuantizer):
            tensors |= {f"{name}.{part}": torch.from_numpy(told) for part, told in quantizer.stored().items()}
    for name, parameter in network.float_parameters().items():
        tensors[f"float.{name}"] = parameter.detach().clone()
    told = {**header(network), "sha256": _digest(tensors)}
    metadata = {METADATA_KEY: json.dumps(told, sort_keys=True)}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)


def is_artefact(path: Path) -> bool:
    """Whether the file is a safetensors file that says it is an artefact; False for anything unreadable."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def load_artefact(path: Path) -> QuantizedNetwork:
    """Read an artefact back: the same simulation, bit for bit.

    Raises:
        UserError: the file is damaged, was written by a newer srquant, or does not fit what it says it is.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"'{path}' is not a readable quantised artefact: {error}") from error
    if not isinstance(told, dict):
        raise UserError(f"'{path}' is not a readable quantised artefact: its header describes nothing")
    if told.get("format") != FORMAT:
        raise UserError(f"'{path}' has artefact format {told.get('format')}; this srquant reads format {FORMAT}")
    try:
        if str(told.get("network")) not in NETWORKS:
            raise unknown("network", str(told.get("network")), NETWORKS)
        network = _rebuild(told)
        if told.get("sha256") != _digest(tensors):
            raise UserError("the tensors are not those that were written: the file is damaged")
        _fill(network, told, tensors)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, ValidationError) as error:
        raise UserError(f"'{path}' is damaged: {type(error).__name__} {error}".replace("\n", " ")) from error
    return network


def _rebuild(told: dict[str, Any]) -> QuantizedNetwork:
    """The network with quantisers that the header describes, without its values."""
    kind = NETWORKS[told["network"]]
    network = kind.from_config(kind.config_type.from_dict(told["network_config"])).eval()
    gated = frozenset(map(str, told["gated"]))
    quantization, join_sum = QuantizationConfig(**told["quantization"]), bool(told["joined_sum"])
    quantized = QuantizedNetwork(network, quantization, join_sum=join_sum, gated=gated)
    if not gated <= quantized.activation_quantizers().keys():
        raise UserError("a gate belongs to a tensor that the network does not have")
    if told["structure"] != _structure(quantized):
        raise UserError(
            f"it was written by srquant {told.get('version')}, whose '{told['network']}' computes in another order; "
            "quantise the float network again"
        )
    quantized.calibration = told["calibration"]
    quantized.equalized = bool(told["equalized"])
    quantized.method = str(told["method"])
    quantized.training_facts = dict(told["training"])
    return quantized


def _fill(network: QuantizedNetwork, told: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Put codes, scales and float parameters into their places; every tensor must have one."""
    left = set(tensors)

    def take(name: str) -> torch.Tensor:
        left.discard(name)
        return tensors[name]

    gated = set(told["gated"])
    for name, quantizer in network.activation_quantizers().items():
        if name in gated:
            network.put_quantizer(name, GatedQuantizer(_picture_grid(name, quantizer, take)))
            continue
        scale, zero_point, maximum_code = (take(f"{name}.{part}") for part in ("scale", "zero_point", "maximum_code"))
        grid = Grid(float(scale), int(zero_point), int(maximum_code))
        kinds = (*WIDE_PARTS, *PACKED_PARTS)
        parts = {part: take(f"{name}.{part}").numpy() for part in kinds if f"{name}.{part}" in left}
        carrier = 8 if parts.keys() & {"lowest", "windows"} else quantizer.bits
        fits = 0 <= grid.zero_point <= grid.maximum_code < 2**carrier
        if not (np.isfinite(grid.scale) and grid.scale > 0 and fits):
            raise UserError(f"the grid of '{name}' is impossible: {grid}")
        quantizer.grid = grid
        if parts:
            network.put_quantizer(name, _with_offsets(network, name, grid, parts))
    for name, convolution in network.convolutions().items():
        shape = tuple(convolution.weight.shape)
        codes = unpack(take(f"{name}.weight").numpy(), convolution.bits, shape)
        steps, zero_points, spacings = (take(f"{name}.{part}") for part in ("steps", "zero_points", "spacings"))
        if not bool((torch.isfinite(steps) & (steps > 0)).all()):
            raise UserError(f"the steps of '{name}' are impossible: not all finite and above 0")
        expansion = int(take(f"{name}.expansion"))
        odd = (spacings == 2) & (zero_points == 1)
        whole = (spacings == 1) & (zero_points.abs() <= 2 ** (convolution.bits - 1))
        spread, centre = spacings.view(-1, 1, 1, 1), zero_points.view(-1, 1, 1, 1)
        weight = torch.from_numpy(codes).int() * spread + centre
        if not bool((odd | whole).all()) or not 1 <= expansion * max(int(weight.abs().max()), 1) <= LARGEST_INT8:
            raise UserError(f"the weight grid of '{name}' is impossible")
        bias = take(f"{name}.bias")
        convolution.restore(LayerCodes(weight.to(torch.int8), zero_points, bias, steps, expansion, spacings))
    network.load_float_parameters({n: take(f"float.{n}") for n in network.float_parameters()})
    if left:
        raise UserError(f"tensors without a place: {', '.join(sorted(left)[:3])}")


def _packable(codes: LayerCodes) -> torch.Tensor:
    """The weight codes as consecutive signed numbers, int8 [O,I,kH,kW]."""
    centred = codes.weight.int() - codes.zero_points.view(-1, 1, 1, 1)
    return (centred // codes.spacings.view(-1, 1, 1, 1)).to(torch.int8)


def _with_offsets(
    network: QuantizedNetwork, name: str, grid: Grid, parts: Mapping[str, NDArray[Any]]
) -> ChannelQuantizer:
    """The quantiser of a tensor whose channels have windows or factors, in the place of the plain one."""
    plain = network.activation_quantizers()[name]
    channels = {layer.in_channels for layer in network.convolutions().values() if layer.source is plain}
    if len(channels) != 1:
        raise UserError(f"the offsets of '{name}' are impossible: no convolution reads it, or they read it differently")
    try:
        lowest, factors, offset_bits = unpacked_offsets(parts, *channels)
    except ValueError as error:
        raise UserError(f"the offsets of '{name}' are impossible: {error}") from error
    return ChannelQuantizer(plain.bits, grid, lowest, factors, offset_bits)


_GATE_PARTS = ("first", "scale", "shift", "second")


def _gate_tensors(grid: PictureGrid) -> dict[str, torch.Tensor]:
    """`bounds` [2], lower and upper, and the weights of the gate, all float32."""
    parts = {f"gate.{part}": torch.from_numpy(getattr(grid.gate, part)) for part in _GATE_PARTS}
    return {"bounds": torch.tensor([grid.lower, grid.upper]), **parts}


def _picture_grid(name: str, quantizer: ActivationQuantizer, take: Callable[[str], torch.Tensor]) -> PictureGrid:
    """The inverse of `_gate_tensors`."""
    bounds = take(f"{name}.bounds")
    first, scale, shift, second = (take(f"{name}.gate.{part}") for part in _GATE_PARTS)
    finite = all(bool(torch.isfinite(part).all()) for part in (bounds, first, scale, shift, second))
    if not finite or first.shape[:1] != scale.shape or second.shape != (2, len(scale)) or shift.shape != scale.shape:
        raise UserError(f"the gate of '{name}' is impossible")
    gate = GateWeights(first.numpy(), scale.numpy(), shift.numpy(), second.numpy())
    return PictureGrid(float(bounds[0]), float(bounds[1]), quantizer.bits, gate)


def _structure(network: QuantizedNetwork) -> str:
    """SHA-256 over the names, the operations and the wiring of the traced graph."""
    digest = hashlib.sha256()
    for node in network.graph.graph.nodes:
        module = module_of(network.graph, node)
        kind = ActivationQuantizer if isinstance(module, ActivationQuantizer) else type(module)  # of whatever grid
        what = node.target if module is None else kind.__name__
        word = what if isinstance(what, str) else getattr(what, "__name__", "")
        digest.update(f"{node.name} {word} {node.args} {sorted(node.kwargs.items())}\n".encode())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, kinds and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
