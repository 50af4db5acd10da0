"""The methods: one published way of training a quantised network per file, made by name."""

from __future__ import annotations

from collections.abc import Mapping

from srquant.methods.base import QuantizedObjective
from srquant.methods.daq import DAQ
from srquant.methods.ddtb import DDTB
from srquant.methods.lsq import LSQ
from srquant.methods.minmax import MinMax
from srquant.methods.odm import ODM
from srquant.methods.pams import PAMS

METHODS: Mapping[str, type[QuantizedObjective]] = {
    method.name: method for method in (DDTB, ODM, PAMS, DAQ, LSQ, MinMax)
}
"""Method by name; `from_options` makes its objective."""

__all__ = ["METHODS", "QuantizedObjective"]
