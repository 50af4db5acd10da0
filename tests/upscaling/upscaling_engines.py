"""Engines whose reach is known because they are a few lines of numpy."""

from __future__ import annotations

import numpy as np

from srquant.engines import Pixels
from srquant.networks.info import NetworkInfo


class BoxEngine:
    """The sum over a square of `radius` (zeros outside the picture, modulo 251), each pixel repeated."""

    name = "box"

    def __init__(
        self, radius: int = 2, scale: int = 2, channels: int = 3, halo: int | None = None, block: int = 1
    ) -> None:
        self.info = NetworkInfo(name="box", scale=scale, channels=channels, peak=255.0, size_multiple=block)
        self.halo: int | None = radius + block - 1 if halo is None else halo
        self.shape: tuple[int, int] | None = None
        self.radius = radius
        self.shapes: list[tuple[int, ...]] = []
        self.fails_at: int | None = None

    def run(self, picture: Pixels) -> Pixels:
        assert picture.flags.c_contiguous
        self.shapes.append(picture.shape)
        if len(self.shapes) == self.fails_at:
            raise RuntimeError("killed")
        values = self._blocks(picture.astype(np.int64))
        side = 2 * self.radius + 1
        height, width, _ = values.shape
        padded = np.pad(values, ((self.radius,) * 2, (self.radius,) * 2, (0, 0)))
        total = np.zeros_like(values)
        for down in range(side):
            for right in range(side):
                weight = 1 + 3 * down + 7 * right
                total += weight * padded[down : down + height, right : right + width]
        scale = self.info.scale
        return (total % 251).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Sums over the blocks of a network that halves its picture: needs sides that are multiples."""
        block = self.info.size_multiple
        assert values.shape[0] % block == 0
        assert values.shape[1] % block == 0
        rows = values.reshape(values.shape[0] // block, block, -1, block, values.shape[2])
        sums = rows.sum(axis=(1, 3)).repeat(block, axis=0).repeat(block, axis=1)
        return sums + values

    def left_in_float(self) -> list[str]:
        return []


class NearestEngine(BoxEngine):
    """Each pixel repeated, `shift` added to its channels: what should come out is easy to say."""

    def __init__(self, shift: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__(radius=0)
        self.shift = np.array(shift)

    def run(self, picture: Pixels) -> Pixels:
        self.shapes.append(picture.shape)
        if len(self.shapes) == self.fails_at:
            raise RuntimeError("killed")
        moved = np.clip(picture + self.shift, 0, 255).astype(np.uint8)
        return moved.repeat(2, axis=0).repeat(2, axis=1)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
