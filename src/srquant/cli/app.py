"""The application: its commands, and how a mistake ends."""

from __future__ import annotations

import sys
from typing import Any

import typer

from srquant.cli import arena, clipping, commands, exporting, training, verifying
from srquant.cli.output import fail
from srquant.errors import UserError

app = typer.Typer(
    name="srquant",
    help="Super-resolution networks at 2, 3, 4 and 8 bit that really run as integers.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    commands.networks,
    commands.info,
    commands.quantize,
    clipping.overshoot,
    clipping.clip_study,
    exporting.export,
    verifying.verify,
    commands.evaluate,
    commands.upscale,
    training.presets,
    training.train,
    arena.arena,
):
    app.command()(command)
app.add_typer(training.experiments, name="experiments")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    if version:
        import srquant

        typer.echo(f"srquant {srquant.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for wrong words on the command line; it does not export the name."""


def main() -> None:
    """Run the command line; a user's mistake gives one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns Ctrl-C into this code
            fail("interrupted")
        sys.exit(code)
    except UserError as error:
        fail(str(error))
        sys.exit(2)
    except _UsageError as error:
        fail(f"{error.format_message()} (srquant --help tells the words)")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
        sys.exit(2)
    except MemoryError:
        fail("out of memory; smaller tiles (--tile) or crops (--crop) need less")
        sys.exit(2)
