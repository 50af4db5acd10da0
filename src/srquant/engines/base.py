"""What every engine is: a picture in, the enlarged picture out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from srquant.networks.info import NetworkInfo

Pixels = NDArray[np.uint8]


class Engine(Protocol):
    """Something that runs one model.

    Attributes:
        name: the word it is asked for by.
        info: scale, channels and value range of the model.
        halo: receptive-field radius in low-resolution pixels; None when tiles cannot be exact.
        shape: height and width of the pictures it takes, in low-resolution pixels; None when any size will do.
    """

    name: str
    info: NetworkInfo
    halo: int | None
    shape: tuple[int, int] | None

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C]."""
        ...

    def left_in_float(self) -> list[str]:
        """Operations that this engine does not compute in integers."""
        ...
