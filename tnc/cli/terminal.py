"""Output of the command line: results, tables, progress bars, and one line for each error."""

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

from tnc.errors import TncError, printable

__all__ = ["Commands", "bars", "show", "show_json"]


class Commands(TyperGroup):
    """Commands whose errors are one line on standard error.

    The exit code is 2 for an error of the user, 1 for an internal error, and 130 for an interrupt. ``TNC_DEBUG=1``
    shows the traceback instead of the line.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False  # otherwise click would print errors itself, as boxes
        try:
            code = super().main(*args, **kwargs)
        except (typer.Abort, KeyboardInterrupt):
            code = _print_error("interrupted", 130)
        except Exception as error:
            if os.environ.get("TNC_DEBUG", "0") not in ("", "0"):
                raise
            code = _print_error(*_message(error))
        sys.exit(code if isinstance(code, int) else 0)


def _message(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    # A usage error has format_message. Its class belongs to click, or to the copy of click inside typer.
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


def _print_error(words: str, code: int) -> int:
    typer.echo("tnc: " + printable(" ".join(words.split())), err=True)  # names from a file may be hostile
    return code


def show(*things: RenderableType, err: bool = False) -> None:
    """Print tables and text on standard output, or on standard error. Without a terminal, the width is 200 columns."""
    wide = None if (sys.stderr if err else sys.stdout).isatty() else 200
    console = Console(width=wide, highlight=False, stderr=err)
    for thing in things:
        console.print(thing, markup=False)


def show_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2))


@contextmanager
def bars() -> Iterator[Callable[..., Iterable[Any]]]:
    """Progress bars with the time left, on standard error, if that is a terminal.

    Yields a function ``track(iterable, total=None, description="")``, which yields the items. Calls may be nested.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    quiet = not sys.stderr.isatty()
    # Estimate the speed from the last hour: a single step may take minutes.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=quiet, speed_estimate_period=3600
    ) as progress:

        def track(iterable: Iterable[Any], *, total: int | None = None, description: str = "") -> Iterator[Any]:
            task = progress.add_task(description, total=total)
            try:
                for item in iterable:
                    yield item
                    progress.advance(task)
            finally:
                progress.remove_task(task)

        yield track
