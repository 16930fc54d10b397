"""The table a person reads, and the file a program reads."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compare.verdict import BAD, Result

PACKAGES = ("torch", "numpy", "opt_einsum", "pytest", "pytest-benchmark")
COLORS = {"slower": "bold red", "faster": "green"}


def amount(number: float, unit: str) -> str:
    """A number of seconds or bytes, as people say it."""
    if unit == "bytes":
        return f"{number / 2**20:.1f} MiB"
    for size, name in ((1.0, "s"), (1e-3, "ms")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number * 1e6:.3g} µs"


def short_name(cell: str) -> str:
    """A node id without its folders."""
    return cell.rpartition("/")[2].replace(".py::", " ").replace("test_", "")


def table(results: Sequence[Result], title: str, limit: float, names: tuple[str, str] = ("base", "this tree")) -> Table:
    """A row per cell: both values, the ratio, its quartiles, and the verdict.

    Parameters
    ----------
    results : sequence of Result
    title : str
        Stands above.
    limit : float
        As in `Result.verdict`.
    names : pair of str
        Of what is compared with, and of ours.
    """
    theirs, ours = names
    made = Table(title=title, title_justify="left", caption_justify="left")
    made.caption = (
        f"ratio: {ours} / {theirs}, median over pairs; spread: quartiles of the ratios; "
        f"slower: the lower quartile is above {limit:g}"
    )
    for head in ("cell", theirs, ours, "ratio", "spread", "pairs", ""):
        made.add_column(head, justify="left" if head in ("cell", "") else "right", overflow="fold")
    for result in results:
        verdict = result.verdict(limit)
        style = COLORS.get(verdict, "bold red" if verdict in BAD else "")
        numbers = ["", "", "", "", ""]
        if result.ratios and not result.note:
            low, high = result.spread
            numbers = [amount(median(values), result.unit) for values in (result.base, result.here)]
            numbers += [f"{result.ratio:.2f}", f"{low:.2f} to {high:.2f}", str(len(result.ratios))]
        words = ": ".join(filter(None, (verdict, result.reason)))
        made.add_row(short_name(result.cell), *numbers, words, style=style)
    return made


def show(what: Table | str) -> None:
    """Print; where no terminal says how wide it is, in 130 columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    console.print(what, markup=False)


def facts() -> dict[str, Any]:
    """What the numbers depend on; not the name of the machine."""
    found: dict[str, Any] = {"Python": platform.python_version(), "system": platform.system()}
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(path: Path, results: Sequence[Result], limit: float, **about: Any) -> None:
    """Write all values as JSON.

    Parameters
    ----------
    path : Path
    results : sequence of Result
    limit : float
        As in `Result.verdict`.
    **about
        What else the file says.
    """
    told = {**about, "limit": limit, "facts": facts(), "cells": [result.as_dict(limit) for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
