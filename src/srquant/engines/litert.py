"""LiteRT (TFLite) files on the XNNPACK kernels of LiteRT's interpreter."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from srquant.engines.base import Pixels
from srquant.engines.exported import Description
from srquant.errors import UserError, missing_package
from srquant.integer.graph import IntegerGraph
from srquant.integer.litert import check_exportable, to_litert
from srquant.integer.litert_file import float_operators, schema

_KINDS = (np.uint8, np.int8)
_SIZES = 3
"""How many files, one per size of pictures, are kept ready to run."""


class LiteRTEngine:
    """A file that takes and gives uint8 or int8 [1, H, W, C] of one size, or a graph, written anew for each size.

    Args:
        model: the bytes of a file, or a graph; its operations without an integer form run in float32.
        description: what the model says about itself.
        threads: processor threads; all by default.

    Attributes:
        shape: height and width of the pictures that a file takes; None for a graph.

    Raises:
        UserError: the package is missing, the file cannot be loaded, or the graph has gates.
    """

    name = "litert"

    def __init__(self, model: bytes | IntegerGraph, description: Description, threads: int | None = None) -> None:
        schema()
        self.info = description.info
        self.halo = description.halo
        self.shape: tuple[int, int] | None = None
        self._threads = threads or len(os.sched_getaffinity(0))
        self._runs: OrderedDict[tuple[int, int], _Interpreter] = OrderedDict()
        if isinstance(model, bytes):
            run = _Interpreter(model, self._threads)
            if run.channels != self.info.channels:
                raise UserError(
                    f"LiteRT cannot run the file: it takes {run.channels} channels, not {self.info.channels}"
                )
            self.shape = run.shape
            self._runs[run.shape] = run
            self._float_operators = float_operators(model)
        else:
            check_exportable(model, allow_float=True)
            self._graph = model
            self._float_operators = model.left_in_float()

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C].

        Raises:
            UserError: a file takes pictures of another size.
        """
        height, width = picture.shape[:2]
        if (height, width) not in self._runs:
            self._runs[height, width] = self._prepared(height, width)
            while len(self._runs) > _SIZES:
                self._runs.popitem(last=False)
        self._runs.move_to_end((height, width))
        return self._runs[height, width].run(picture)

    def left_in_float(self) -> list[str]:
        """What the file computes on real numbers."""
        return self._float_operators

    def _prepared(self, height: int, width: int) -> _Interpreter:
        if self.shape is not None:
            raise UserError(
                f"the file takes pictures of {self.shape[0]}x{self.shape[1]} (height x width), not {height}x{width}; "
                f"export it with --shape {height}x{width}"
            )
        content = to_litert(self._graph, height, width, io="int8", allow_float=True)  # uint8 ends take longer
        return _Interpreter(content, self._threads)


def check_loads(content: bytes) -> None:
    """Open a file once, as a runtime that is to run it does.

    Raises:
        UserError: the package is missing, or LiteRT cannot load the file.
    """
    _Interpreter(content, 1)


class _Interpreter:
    """One loaded file."""

    def __init__(self, content: bytes, threads: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise missing_package("ai-edge-litert", "the engine 'litert'", "litert") from error
        try:
            with _without_greeting():
                self._interpreter = Interpreter(model_content=content, num_threads=threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"LiteRT cannot load the file: {str(error).strip().splitlines()[0]}") from error
        ends = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if any(len(end) != 1 or len(end[0]["shape"]) != 4 or end[0]["dtype"] not in _KINDS for end in ends):
            raise UserError("LiteRT cannot run the file: it does not take one picture and give one")
        self._input, self._output = ends[0][0], ends[1][0]
        _, height, width, self.channels = map(int, self._input["shape"])
        self.shape = height, width

    def run(self, picture: Pixels) -> Pixels:
        self._interpreter.set_tensor(self._input["index"], _as(self._input["dtype"], picture)[None])
        self._interpreter.invoke()
        return _as(np.uint8, self._interpreter.get_tensor(self._output["index"])[0])


def _as(kind: Any, pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8, or as int8 that are 128 less; the other way round alike."""
    return pixels if pixels.dtype == kind else (pixels.view(kind) ^ np.array(-128, np.int8).view(kind))


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Keep the runtime's line about its delegate off standard error; its errors are raised anyway."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
