"""Engines on PyTorch: a float network as it is, and the simulation of a quantised one."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from srquant.engines.base import Pixels
from srquant.networks.cost import halo
from srquant.networks.info import SRNetwork
from srquant.quantizers.network import QuantizedNetwork


class FloatEngine:
    """A float network in eager PyTorch, channels last; float32, or bfloat16 for speed."""

    name = "torch"
    shape: tuple[int, int] | None = None

    def __init__(self, network: SRNetwork, dtype: torch.dtype = torch.float32) -> None:
        network = network.collapsed()
        self.info = network.info
        self.halo = halo(network)
        self._dtype = dtype
        network = copy.deepcopy(network).eval().to(dtype)
        self._network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C], rounded half to even."""
        factor = self.info.peak / 255
        with torch.inference_mode():
            values = self._network((to_tensor(picture) * factor).to(self._dtype)).float()
        return to_pixels(values / factor)

    def left_in_float(self) -> list[str]:
        """Everything."""
        return [name for name, module in self._network.named_modules() if isinstance(module, nn.Conv2d)]


class SimulationEngine:
    """The quantised network as training sees it: float32 values rounded to the grids."""

    name = "simulate"
    shape: tuple[int, int] | None = None

    def __init__(self, network: QuantizedNetwork) -> None:
        self.info = network.info
        self.halo = network.halo
        self._network = network.eval()

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C]."""
        with torch.inference_mode():
            return to_pixels(self._network(to_tensor(picture)))

    def left_in_float(self) -> list[str]:
        """Everything: it is a simulation."""
        return list(self._network.convolutions())


def to_tensor(picture: Pixels) -> Tensor:
    """uint8 [H, W, C] -> float32 [1, C, H, W] with pixel values, channels last in memory."""
    values = torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)[None]
    return values.float().contiguous(memory_format=torch.channels_last)


def to_pixels(values: Tensor) -> Pixels:
    """float32 [1, C, H, W] of pixel values -> uint8 [H, W, C]: clamped, rounded half to even."""
    pixels = values[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())
