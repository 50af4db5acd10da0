"""Integer graphs: what a quantised network computes on codes, and the files that carry it."""

from __future__ import annotations

from srquant.integer.graph import IntegerGraph
from srquant.integer.lowering import lower
from srquant.integer.onnx import to_onnx

__all__ = ["IntegerGraph", "lower", "to_onnx"]
