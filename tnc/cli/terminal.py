"""How the command line speaks: results, tables, progress bars, and one line for an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from tnc.errors import TncError

__all__ = ["Commands", "bars", "show", "show_json"]


class Commands(TyperGroup):
    """Commands whose errors are one line on standard error and exit code 2; 1 for a fault of ours.

    ``TNC_DEBUG=1`` shows the traceback instead.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False  # or errors would be drawn as boxes, by click's own hand
        try:
            code = super().main(*args, **kwargs)
        except (typer.Abort, KeyboardInterrupt):
            code = _say("interrupted", 130)
        except Exception as error:
            if os.environ.get("TNC_DEBUG", "0") not in ("", "0"):
                raise
            code = _say(*_verdict(error))
        sys.exit(code if isinstance(code, int) else 0)


def _verdict(error: Exception) -> tuple[str, int]:
    """The words for `error`, and the exit code."""
    # A usage error has format_message; its class is click's, or of typer's own copy of click.
    if usage := getattr(error, "format_message", None):
        words = usage()
        return f"{words}{'' if words.endswith(('.', '?')) else '.'} See 'tnc --help'.", 2
    if isinstance(error, TncError):
        return str(error), 2
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error), 2
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'tncompress[{error.name}]'", 2
    return f"internal error: {type(error).__name__}: {error} (TNC_DEBUG=1 shows where)", 1


def _say(words: str, code: int) -> int:
    typer.echo("tnc: " + " ".join(words.split()), err=True)
    return code


def show(*things: RenderableType) -> None:
    """Print tables and text on standard output; not squeezed to 80 columns where it is no terminal."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for thing in things:
        console.print(thing)


def show_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2))


@contextmanager
def bars() -> Iterator[Callable[..., Iterable[Any]]]:
    """Progress bars with the time left, on standard error and only where that is a terminal.

    Yields ``track(iterable, total=None, description="")``, which yields the items; tracks may be nested.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    quiet = not sys.stderr.isatty()
    # An hour's memory for the speed: one step of ours may take minutes.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=quiet, speed_estimate_period=3600
    ) as shown:

        def track(iterable: Iterable[Any], *, total: int | None = None, description: str = "") -> Iterator[Any]:
            task = shown.add_task(description, total=total)
            try:
                for item in iterable:
                    yield item
                    shown.advance(task)
            finally:
                shown.remove_task(task)

        yield track
