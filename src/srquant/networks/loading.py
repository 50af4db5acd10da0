"""Checkpoints: a file becomes a network, or one line that says why not; a network becomes a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srquant.errors import UserError, unknown
from srquant.files import atomic_path
from srquant.networks import NETWORKS, NetworkConfig, SRNetwork
from srquant.networks.pickles import foreign, read_pickle

SUFFIXES = (".safetensors", ".pth", ".pt")

_WRAPPERS = ("params_ema", "params", "state_dict", "model")
"""Names under which training codes nest the state dict; BasicSR's average (params_ema) goes first."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and EDSR-PyTorch's wrapper put before every key."""

_HEADER = "srquant"
_ARTEFACT = "srquant_artefact"
_SHOWN_KEYS = 4


def load_network(path: Path, *, others: Sequence[str] = ()) -> SRNetwork:
    """Load a checkpoint of any known network, recognised by its keys; no flags.

    Reads `.safetensors`, `.pth` and `.pt` (weights only: pickled code is refused). Takes the state dict out
    of `params_ema`, `params`, `state_dict` or `model` and strips `module.`, `_orig_mod.` and `model.` from
    its keys. Files of `save_network` carry the network's name and config, which have precedence. Loading
    is strict: every key, every shape, finite values; half, bfloat16 and double become float32.

    Args:
        path: the file.
        others: suffixes that the caller opens by other means, told among those allowed.

    Returns:
        The network in float32 and eval mode on the CPU, gradients on. Torch's random state is untouched.

    Raises:
        UserError: the file cannot be read, holds no known network, or does not fit it.
    """
    try:
        _require_file(path, others)
        if path.suffix.lower() == ".safetensors":
            state, metadata = _read_safetensors(path)
        else:
            state, metadata = _state_dict(read_pickle(path)), {}
        if _HEADER in metadata:
            kind, config = _read_header(metadata[_HEADER])
            kind.check(config, state)
        else:
            kind, config, state = _recognise(state)
        return _build(kind, config, state)
    except UserError as error:
        raise UserError(f"cannot load '{path}': {error}") from error


def save_network(network: SRNetwork, path: Path) -> None:
    """Write weights, name and config as `.safetensors`; the same network gives the same bytes.

    Raises:
        UserError: another suffix, or a place that cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"cannot save '{path}': the suffix is '{path.suffix}'; allowed: .safetensors")
    header = {"network": network.name, "config": asdict(network.config)}
    # One metadata entry only: safetensors writes several in random order.
    metadata = {_HEADER: json.dumps(header, sort_keys=True)}
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        try:
            save_file(state, temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot save '{path}': {_one_line(error)}") from error


def _require_file(path: Path, others: Sequence[str]) -> None:
    """Refuse what cannot be a checkpoint before anything is read into memory."""
    try:
        if path.is_dir():
            raise UserError("it is a folder")
        if not path.is_file():
            raise UserError("there is no such file")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"the suffix is '{path.suffix}'; allowed: {', '.join((*SUFFIXES, *others))}")
        if path.stat().st_size == 0:
            raise UserError("the file is empty")
        mistaken = foreign(path)
    except OSError as error:
        raise UserError(error.strerror or "the file cannot be read") from error
    if mistaken:
        raise UserError(mistaken)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors by name, and the metadata of the header."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _ARTEFACT in metadata:
                raise UserError("is a quantised artefact, not the weights of an FP32 network")
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  # not a dict
    except UserError:
        raise
    except OSError as error:
        raise UserError(error.strerror or "the file cannot be read") from error
    except (SafetensorError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"no whole safetensors file ({_one_line(error)})") from error


def _state_dict(content: object) -> dict[str, Tensor]:
    """The state dict inside what a `.pth` file holds, without wrappers and prefixes."""
    for _ in _WRAPPERS:  # they nest: {"model": {"state_dict": ..}}
        if isinstance(content, Mapping):
            inner = (content[wrapper] for wrapper in _WRAPPERS if wrapper in content)
            content = next((value for value in inner if isinstance(value, Mapping)), content)
    if not isinstance(content, Mapping):
        raise UserError(f"holds a {type(content).__name__}, not a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"no state dict: under {key!r:.60} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise UserError(f"the tensor {key!r:.60} is sparse, quantised or without values")
    return dict(content)


def _recognise(state: dict[str, Tensor]) -> tuple[type[SRNetwork], NetworkConfig, dict[str, Tensor]]:
    """The network that the keys tell, and the entries that it loads."""
    state = _without_prefixes(state)
    for kind in NETWORKS.values():
        config = kind.recognise(state)
        if config is not None:
            return kind, config, kind.entries(state)
    known = ", ".join(NETWORKS)
    if not state:
        raise UserError(f"holds no tensors; known networks: {known}")
    first = ", ".join(f"{key!r:.60}" for key in list(state)[:_SHOWN_KEYS])
    raise UserError(f"no known network has these {len(state)} keys ({first}, ..); known networks: {known}")


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes that all keys share, in whatever order they were put there."""
    while state:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _read_header(text: str) -> tuple[type[SRNetwork], NetworkConfig]:
    """The network and config that `save_network` wrote."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the metadata '{_HEADER}' is no JSON ({_one_line(error)})") from error
    name, config = (header.get("network"), header.get("config")) if isinstance(header, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(config, dict):
        raise UserError(f"the metadata '{_HEADER}' lacks a network name and a config")
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    kind = NETWORKS[name]
    return kind, kind.config_type.from_dict(config)


def _build(kind: type[SRNetwork], config: NetworkConfig, state: Mapping[str, Tensor]) -> SRNetwork:
    """A network with these checked entries as float32 numbers."""
    with torch.random.fork_rng(devices=[]):
        network = kind.from_config(config).float()
    expected = network.state_dict()
    network.load_state_dict({key: _converted(key, state[key], expected[key].dtype) for key in expected})
    return network.eval()


def _converted(key: str, tensor: Tensor, wanted: torch.dtype) -> Tensor:
    """The tensor in the wanted type; refuses whole numbers for weights and anything that is not finite."""
    if tensor.is_floating_point() != wanted.is_floating_point or tensor.is_complex():
        raise UserError(f"'{key}' holds {tensor.dtype}, expected {wanted}")
    converted = tensor.detach().to(wanted)
    if not torch.isfinite(converted).all():
        raise UserError(f"'{key}' holds NaN or infinite values")
    return converted


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
