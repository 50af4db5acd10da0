"""Scores during training, on pictures that are neither trained on nor part of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.imaging import open_set
from srquant.imaging.colour import seen_by
from srquant.metrics import Protocol, psnr

_BENCHMARK = re.compile(r"(set5|set14|b100|bsds?100|urban100|manga109)([-_. ].*)?", re.IGNORECASE)


class Validation:
    """The first pictures of a folder, held in memory.

    Args:
        folder: as `srquant.imaging.open_set` takes it.
        scale: enlargement.
        pictures: how many, the first ones by name.
        channels: of the network: 3, or 1, where luma is judged against the luma of the true picture.

    Raises:
        UserError: the folder is a benchmark set, is missing or empty, or a picture cannot be read.

    Attributes:
        protocol: how a score is computed.
    """

    def __init__(self, folder: Path, scale: int, pictures: int, channels: int = 3) -> None:
        _refuse_benchmarks(folder)
        self.protocol = Protocol.standard(scale)
        self.scale = scale
        loaded = (pair.load(scale) for pair in open_set(folder, scale).pairs[:pictures])
        self._pairs = [(seen_by(channels, low), _scored(seen_by(channels, high))) for low, high in loaded]
        for _, high in self._pairs:
            psnr(high, high, self.protocol)

    def __len__(self) -> int:
        return len(self._pairs)

    @torch.no_grad()
    def score(self, network: nn.Module, device: torch.device, rank: int = 0, count: int = 1) -> float:
        """The summed PSNR of every `count`-th picture from `rank` on, divided by the number of all pictures.

        The network runs in eval mode and float32; its modes are afterwards what they were.

        Args:
            network: float32 [N,C,H,W], 0..255, to [N,C,s*H,s*W], C being the channels.
            device: where the network is.
            rank: of this process.
            count: of the processes that share the pictures; the scores of all add up to the mean.
        """
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            return sum(self._psnr(network, device, *pair) for pair in self._pairs[rank::count]) / len(self)
        finally:
            for module, training in modes:
                module.training = training

    def _psnr(
        self, network: Callable[[Tensor], Tensor], device: torch.device, low: np.ndarray, high: np.ndarray
    ) -> float:
        out = network(torch.from_numpy(low).to(device).permute(2, 0, 1)[None].float())
        picture = out[0].float().clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return psnr(np.ascontiguousarray(_scored(picture)), high, self.protocol)


def _scored(pixels: np.ndarray) -> np.ndarray:
    """Pixels as scores take them: luma [H,W,1] becomes a grey picture [H,W]."""
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _refuse_benchmarks(folder: Path) -> None:
    for part in (*folder.parts, *folder.resolve().parts):
        if _BENCHMARK.fullmatch(part):
            raise UserError(
                f"cannot validate on '{folder}': '{part}' is a benchmark set, and choosing weights on test pictures "
                "makes their scores worthless; give pictures that are in no benchmark, such as some of DIV2K's "
                "validation split"
            )
