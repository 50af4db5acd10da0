"""Grids, ranges, quantised layers and placement: what all methods share."""

from __future__ import annotations

from srquant.quantizers.artefact import load_artefact, save_artefact
from srquant.quantizers.network import QuantizedNetwork
from srquant.quantizers.placement import PLACEMENTS, Placement

__all__ = ["PLACEMENTS", "Placement", "QuantizedNetwork", "load_artefact", "save_artefact"]
