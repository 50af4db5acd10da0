"""The command line: parse, call, print. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

from srquant.cli.app import main

__all__ = ["main"]
