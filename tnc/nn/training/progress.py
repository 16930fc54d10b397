"""A progress bar on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import Progress

__all__ = ["bar"]


@contextmanager
def bar(title: str, total: float, wanted: bool) -> Iterator[Callable[[], None]]:
    """A progress bar; the function advances it by a step. Nothing is shown if standard error is no terminal.

    Parameters
    ----------
    title : str
    total : float
        The number of steps; infinite if it is not known.
    wanted : bool
        Whether to show it at all.
    """
    console = Console(stderr=True)
    hidden = not (wanted and console.is_terminal)
    with Progress(console=console, transient=True, disable=hidden) as shown:
        task = shown.add_task(title, total=total if math.isfinite(total) else None)
        yield partial(shown.advance, task)
