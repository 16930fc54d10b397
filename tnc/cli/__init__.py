"""The command line: ``tnc compress``, ``tnc inspect``, ``tnc plugins``, ``tnc demo``.

Results go to standard output; with ``--json``, nothing else does. Progress bars and errors go to standard error. This
package imports quickly: each command imports NumPy and torch when it needs them.
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from tnc.cli import demo, plugins, weights
from tnc.cli.terminal import Commands

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    help="Compress neural networks with tensor networks.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tncompress {metadata.version('tncompress')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compress neural networks with tensor networks."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("compress")(weights.compress)
app.command("inspect")(weights.inspect)
app.command("plugins")(plugins.plugins)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line. This is the console entry point ``tnc``."""
    app()
