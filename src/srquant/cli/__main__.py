"""`python -m srquant.cli`: the command line without the installed command."""

from __future__ import annotations

from srquant.cli import main

main()
