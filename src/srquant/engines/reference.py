"""The engine that runs the integer reference: slow, and right by definition."""

from __future__ import annotations

from srquant.engines.base import Pixels
from srquant.integer import reference
from srquant.integer.graph import IntegerGraph


class ReferenceEngine:
    """`srquant.integer.reference` as an engine."""

    name = "reference"
    shape: tuple[int, int] | None = None

    def __init__(self, graph: IntegerGraph) -> None:
        self.info = graph.info
        self.halo = graph.halo
        self._graph = graph

    def run(self, picture: Pixels) -> Pixels:
        """uint8 [H, W, C] -> uint8 [scale*H, scale*W, C]."""
        return reference.run(self._graph, picture)

    def left_in_float(self) -> list[str]:
        """The operations that have no integer form."""
        return self._graph.left_in_float()
