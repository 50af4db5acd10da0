"""Verification: every engine against the integer reference, in output levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srquant.engines import Engine, Model, Pixels, installed_engines, open_engine
from srquant.engines.exported import ExportedFile
from srquant.errors import UserError
from srquant.networks.info import SRNetwork
from srquant.progress import Progress
from srquant.quantizers import QuantizedNetwork


@dataclass(frozen=True)
class Verification:
    """One engine against the reference.

    Attributes:
        engine: its name.
        largest: largest difference of two pixels in grey levels.
        share: share of the values that differ at all.
        psnr: of the engine's picture to the reference's, in dB; inf when equal.
        left_in_float: operations that the engine does not compute in integers.
        promised: whether the contract promises equality: ONNX Runtime for a network that is integer throughout, and
            every engine for one with exact scales; none for one with gates.
    """

    engine: str
    largest: int
    share: float
    psnr: float
    left_in_float: tuple[str, ...]
    promised: bool

    @property
    def broken(self) -> bool:
        """Whether equality is promised and not kept."""
        return self.promised and self.largest > 0


def verify(
    model: Model,
    engines: Sequence[str] = (),
    *,
    exported: ExportedFile | None = None,
    picture: Pixels | None = None,
    progress: Progress,
) -> list[Verification]:
    """Run a quantised network on several engines and compare with the integer reference.

    Args:
        model: a quantised artefact.
        engines: names from `srquant.engines.ENGINES`; all that are installed by default.
        exported: a file exported from this artefact, to be run in its stead.
        picture: uint8 [H, W, C]; by default `drawn_picture`.
        progress: told of every engine.

    Raises:
        UserError: the model is not a quantised artefact, or an engine is unknown or not installed.
    """
    if isinstance(model, ExportedFile):
        raise UserError("an exported file holds no reference to compare with: verify the artefact it came from")
    if isinstance(model, SRNetwork):
        raise UserError("a float network has no integer reference: quantise it first")
    assert isinstance(model, QuantizedNetwork)
    picture = drawn_picture(model.info.channels) if picture is None else picture
    if not engines:
        able = installed_engines() if exported is None else exported.engines()
        engines = [name for name in able if name != "reference" and name in installed_engines()]
    progress.start("verifying", len(engines) + 1)
    try:
        wanted = open_engine(model, "reference").run(picture)
        progress.advance()
        found = []
        for name in engines:
            engine = open_engine(exported or model, name)
            in_integers = name == "onnxruntime" and not any(
                kind == "ContrastAttention" for kind in model.placement.left_in_float.values()
            )
            promised = (model.quantization.exact or in_integers) and not model.gates()
            found.append(compare(engine, picture, wanted, promised=promised))
            progress.advance()
    finally:
        progress.finish()
    return found


def compare(engine: Engine, picture: Pixels, wanted: Pixels, *, promised: bool = False) -> Verification:
    """One engine against the reference's picture."""
    found = engine.run(picture)
    difference = np.abs(found.astype(np.int16) - wanted)
    mean_square = float(np.square(difference.astype(np.float64)).mean())
    psnr = math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)
    share = float((difference > 0).mean())
    return Verification(engine.name, int(difference.max()), share, psnr, tuple(engine.left_in_float()), promised)


def drawn_picture(channels: int, height: int = 96, width: int = 128) -> Pixels:
    """A drawn picture with flats, ramps, edges, circles and grain: uint8 [height, width, channels]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    random = np.random.default_rng(0)
    planes = []
    for channel in range(channels):
        rings = 60 * np.cos(np.hypot(x - width / 3, y - height / 2) ** 2 / (150 + 40 * channel))
        ramp = 255 * x / width if channel % 2 else 255 * y / height
        blocks = 80 * ((x // 16 + y // 12) % 2)
        grain = random.normal(0, 6, (height, width))
        planes.append(np.where(x < width / 2, ramp * 0.6 + blocks, 128 + rings) + grain)
    return np.clip(np.rint(np.stack(planes, axis=-1)), 0, 255).astype(np.uint8)
