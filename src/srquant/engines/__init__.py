"""The engines: one runner per runtime, all with the same call, picture in, picture out."""

from __future__ import annotations

from srquant.engines.base import Engine, Pixels
from srquant.engines.exported import Description, ExportedFile
from srquant.engines.loading import ENGINES, Model, able_engines, installed_engines, load, open_engine

__all__ = [
    "ENGINES",
    "Description",
    "Engine",
    "ExportedFile",
    "Model",
    "Pixels",
    "able_engines",
    "installed_engines",
    "load",
    "open_engine",
]
