"""Commands called as a user calls them."""

from __future__ import annotations

from typer.testing import CliRunner

from srquant.cli.app import app


def run(*args: object, code: int = 0) -> str:
    """Standard output of a command, without wrapped lines."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output
