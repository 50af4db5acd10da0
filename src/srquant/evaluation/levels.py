"""The check that a quantised network keeps to its bits."""

from __future__ import annotations

import torch

from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.offsets import ChannelQuantizer

_SIDE = 32
"""Of the noise picture, in low-resolution pixels."""


def noise_picture(channels: int) -> torch.Tensor:
    """Float32 [1, channels, 32, 32] of pixel values that reach many codes; the same ones always."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, channels, _SIDE, _SIDE), generator=random).float()


def level_counts(network: QuantizedNetwork, picture: torch.Tensor | None = None) -> dict[str, int]:
    """How many different codes each tensor takes, and each weight in its richest output channel.

    A tensor whose channels have offsets (`ChannelQuantizer`) is counted in its richest channel, too: each channel has
    a window of 2^b codes of its own, and all windows together may take up to 256.

    Args:
        network: calibrated.
        picture: float32 [1, C, H, W] with pixel values; by default `noise_picture`.
    """
    if picture is None:
        picture = noise_picture(network.info.channels)
    seen: dict[str, dict[int, set[float]]] = {}
    hooks = []
    for name, quantizer in network.activation_quantizers().items():

        def hook(module: object, _inputs: object, output: torch.Tensor, name: str = name) -> None:
            parts = output.unbind(1) if isinstance(module, ChannelQuantizer) else [output]
            for place, part in enumerate(parts):
                seen.setdefault(name, {}).setdefault(place, set()).update(torch.unique(part).tolist())

        hooks.append(quantizer.register_forward_hook(hook))
    try:
        with torch.inference_mode():
            network(picture)
    finally:
        for handle in hooks:
            handle.remove()
    counts = {name: max(map(len, parts.values())) for name, parts in seen.items()}
    weights = {f"{name}.weight": conv.codes().weight for name, conv in network.convolutions().items()}
    return counts | {name: max(len(torch.unique(codes)) for codes in weight) for name, weight in weights.items()}


def check_levels(network: QuantizedNetwork) -> None:
    """Assert that every tensor uses at most 2^b codes.

    Raises:
        RuntimeError: one does not, which is a fault of srquant.
    """
    bits = {name: q.bits for name, q in network.activation_quantizers().items()}
    bits |= {f"{name}.weight": conv.bits for name, conv in network.convolutions().items()}
    for name, count in level_counts(network).items():
        if count > 2 ** bits[name]:
            raise RuntimeError(f"the tensor '{name}' uses {count} codes, more than {bits[name]} bits hold")
