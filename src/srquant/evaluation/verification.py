"""Verification: every engine against the integer reference, in output levels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from srquant.engines import Engine, Model, Pixels, able_engines, open_engine
from srquant.engines.exported import ExportedFile
from srquant.errors import UserError
from srquant.evaluation.flat_pictures import FlatPictures, judge_flat_pictures
from srquant.imaging.colour import seen_by
from srquant.integer import lower
from srquant.integer.litert_kernels import unequal
from srquant.integer.litert_rewrites import prepare
from srquant.networks.info import NetworkInfo, SRNetwork
from srquant.progress import Progress
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.artefact import header
from srquant.upscaling import upscale_pixels


@dataclass(frozen=True)
class Verification:
    """One engine against the reference.

    Attributes:
        engine: its name.
        largest: largest difference of two pixels in grey levels.
        share: share of the values that differ at all.
        psnr: of the engine's picture to the reference's, in dB; inf when equal.
        left_in_float: operations that the engine does not compute in integers.
        promised: whether the contract promises equality: LiteRT where its operations are all proven equal, with
            exact scales too; of a network that is integer throughout ONNX Runtime, and every other engine where the
            scales are exact.
        flat: what the engine makes of flat pictures.
        foreign: whether it ran a file that says it was exported from another artefact.
    """

    engine: str
    largest: int
    share: float
    psnr: float
    left_in_float: tuple[str, ...]
    promised: bool
    flat: FlatPictures
    foreign: bool = False

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
        engines: names from `srquant.engines.ENGINES`; all that are installed and can run it by default.
        exported: a file exported from this artefact, to be run in its stead.
        picture: uint8 [H, W, 3], of which a network for luma sees its luma; by default `drawn_picture`,
            of the shape that an exported file takes.
        progress: told of every engine.

    Raises:
        UserError: the model is not a quantised artefact, an engine is unknown or not installed, or the exported file
            holds another network or a float one.
    """
    if isinstance(model, ExportedFile):
        raise UserError("an exported file holds no reference to compare with: verify the artefact it came from")
    if isinstance(model, SRNetwork):
        raise UserError("a float network has no integer reference: quantise it first")
    assert isinstance(model, QuantizedNetwork)
    foreign = exported is not None and _is_foreign(exported, model)
    channels = model.info.channels
    shape = None if exported is None else exported.description.shape
    picture = drawn_picture(channels, *(shape or ())) if picture is None else seen_by(channels, picture)
    engines = engines or [name for name in able_engines(exported or model) if name != "reference"]
    progress.start("verifying", len(engines) + 1)
    try:
        wanted = open_engine(model, "reference").run(picture)
        progress.advance()
        found = []
        for name in engines:
            engine = open_engine(exported or model, name)
            promised = _is_promised(model, name) and not (exported and exported.description.unequal)
            found.append(compare(engine, picture, wanted, promised=promised, foreign=foreign))
            progress.advance()
    finally:
        progress.finish()
    return found


def _is_foreign(exported: ExportedFile, model: QuantizedNetwork) -> bool:
    """Whether a file says that it was exported from another artefact; of another srquant's file nothing is known.

    Raises:
        UserError: the file holds another network, or a float one.
    """
    found, told = exported.description.info, exported.description.provenance
    if found != model.info:
        given, wanted = (_told(info) for info in (found, model.info))
        raise UserError(f"'{exported.path}' holds another network than the artefact: {given}, not {wanted}")
    if not told:
        raise UserError(f"'{exported.path}' holds a float network: verify a file that was exported from the artefact")
    own = json.loads(json.dumps(header(model)))
    return told.get("version", own["version"]) == own["version"] and told != own


def _told(info: NetworkInfo) -> str:
    """A network and its facts, in words."""
    name, *others = asdict(info).items()
    return f"{name[1]} ({', '.join(f'{key}={value}' for key, value in others)})"


def _is_promised(model: QuantizedNetwork, engine: str) -> bool:
    """Whether the contract promises that an engine equals the reference."""
    graph = lower(model)
    if graph.left_in_float():
        return False
    if engine == "litert":
        return not unequal(prepare(graph))
    return model.quantization.exact or engine == "onnxruntime"


def compare(
    engine: Engine, picture: Pixels, wanted: Pixels, *, promised: bool = False, foreign: bool = False
) -> Verification:
    """One engine against the reference's picture, and on flat ones; one that takes a single shape runs it in tiles."""
    found = engine.run(picture) if engine.shape is None else upscale_pixels(engine, picture)
    difference = np.abs(found.astype(np.int16) - wanted)
    mean_square = float(np.square(difference.astype(np.float64)).mean())
    psnr = math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)
    share, left = float((difference > 0).mean()), tuple(engine.left_in_float())
    flat = judge_flat_pictures(engine)
    return Verification(engine.name, int(difference.max()), share, psnr, left, promised, flat, foreign)


def judge_float(model: QuantizedNetwork, network: Model) -> FlatPictures:
    """What the float network that an artefact came from makes of flat pictures.

    Raises:
        UserError: it is no float network, or not one of the artefact's shape.
    """
    if not isinstance(network, SRNetwork):
        raise UserError("flat pictures are compared with a float network's; this one is quantised")
    plain = network.collapsed()
    if (plain.info, asdict(plain.config)) != (model.info, model.network_config):
        told = f"{plain.info.name} x{plain.info.scale}, {model.info.name} x{model.info.scale}"
        raise UserError(f"the float network and the artefact are not of one shape: {told}")
    return judge_flat_pictures(open_engine(plain, "torch"))


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
