"""Exported files: ONNX, OpenVINO and LiteRT models that carry srquant's description of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from srquant.errors import UserError, missing_package
from srquant.integer.litert_file import read_text
from srquant.networks.info import NetworkInfo
from srquant.networks.onnx import METADATA_KEY

_ENGINES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".tflite": ("litert",)}
SUFFIXES = tuple(_ENGINES)


@dataclass(frozen=True)
class Description:
    """What an exported file says about itself; see `srquant.integer.onnx.description`.

    Attributes:
        info: the float network that it came from.
        halo: receptive-field radius, None when tiles cannot be exact.
        provenance: header of the artefact; empty for a float network.
        shape: height and width of the pictures that it takes; None when any size will do.
        pictures: what a LiteRT file takes and gives, uint8 or int8.
        unequal: operations of a LiteRT file that are not proven equal to the integer reference.
    """

    info: NetworkInfo
    halo: int | None
    provenance: dict[str, Any]
    shape: tuple[int, int] | None = None
    pictures: str = "uint8"
    unequal: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Parse the text that a file carries.

        Raises:
            ValueError, KeyError, TypeError: it is not such a text.
        """
        told = json.loads(text)
        plain = NetworkInfo(**told["info"]), told["halo"], told["provenance"]
        if "litert" not in told:
            return cls(*plain)
        height, width = told["litert"]["shape"]
        return cls(*plain, (int(height), int(width)), told["litert"]["pictures"], tuple(told["litert"]["unequal"]))


@dataclass(frozen=True)
class ExportedFile:
    """An ONNX file, an OpenVINO model's XML file with its .bin beside it, or a LiteRT file."""

    path: Path
    description: Description

    def engines(self) -> tuple[str, ...]:
        """Names of the engines that can run it."""
        return _ENGINES[self.path.suffix]


def read_exported(path: Path) -> ExportedFile:
    """Recognise an exported file.

    Raises:
        UserError: it cannot be read, or was not written by srquant.
    """
    if not path.is_file():
        raise UserError(f"'{path}' is a folder" if path.is_dir() else f"cannot load '{path}': there is no such file")
    try:
        text = _READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # protobuf, XML and flatbuffer readers raise types of their own
        raise UserError(f"'{path}' is not a readable {path.suffix} model") from error
    if text is None:
        raise UserError(f"'{path}' was not exported by srquant: it does not say its network and scale")
    try:
        return ExportedFile(path, Description.from_json(text))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' describes itself in a way this srquant cannot read") from error


def _onnx_text(path: Path) -> str | None:
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", "reading an ONNX file", "onnx") from error
    properties = onnx.load(path, load_external_data=False).metadata_props
    return next((p.value for p in properties if p.key == METADATA_KEY), None)


def files_of(path: Path) -> list[Path]:
    """All files of a model: of an OpenVINO model (.xml) also its weights (.bin)."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _openvino_text(path: Path) -> str | None:
    if not path.with_suffix(".bin").is_file():
        raise UserError(f"'{path}' needs its weights '{path.with_suffix('.bin').name}' beside it")
    node = ElementTree.parse(path).find(f"rt_info/{METADATA_KEY}")
    return None if node is None else node.get("value")


def _litert_text(path: Path) -> str | None:
    return read_text(path, METADATA_KEY)


_READERS: dict[str, Callable[[Path], str | None]] = {
    ".onnx": _onnx_text,
    ".xml": _openvino_text,
    ".tflite": _litert_text,
}
