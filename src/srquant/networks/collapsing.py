"""Networks with two forms: wide linear blocks for training, which collapse to the plain convolutions that are run.

A network of that kind says with its config which form it is in. Trained, it is `SRNetwork.collapsed` that is
quantised, exported and run: the same function, up to the rounding of its weights to float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from srquant.networks.info import ConfigT, SRNetwork


class Collapsible(nn.Module):
    """A linear block of a network in its training form, standing where the plain form has plain layers."""

    def collapse(self) -> tuple[Tensor, Tensor]:
        """Weight [O, I, k, k] and bias [O] of the one convolution, zero-padded by k // 2, that the block is."""
        raise NotImplementedError

    def convolve(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H, W] by the collapsed convolution; gradients reach what it was collapsed from."""
        weight, bias = self.collapse()
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def plain_state(self) -> dict[str, Tensor]:
        """The entries that stand in the block's place in the plain form, by their keys below its name."""
        weight, bias = self.collapse()
        return {"weight": weight, "bias": bias}


@torch.no_grad()
def collapse(network: SRNetwork[ConfigT], config: ConfigT) -> SRNetwork[ConfigT]:
    """The plain form of a network in training form.

    Args:
        network: not changed.
        config: of the plain form.

    Returns:
        A network of the same class, mode, device and type, whose weights were collapsed in float64.
    """
    blocks = {name: module for name, module in network.named_modules() if isinstance(module, Collapsible)}
    state = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if not any(key.startswith(f"{name}.") for name in blocks)
    }
    for name, block in blocks.items():
        wide = copy.deepcopy(block).double()
        state |= {f"{name}.{key}": tensor for key, tensor in wide.plain_state().items()}
    with torch.random.fork_rng(devices=[]):
        plain = type(network).from_config(config).to(next(network.parameters()))
    plain.load_state_dict(state)
    return plain.train(network.training)
