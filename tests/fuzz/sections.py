"""The page on reliability: sections with what was tried and what held, each made by a function and kept as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from textwrap import wrap
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "reliability.md", DOCS / "reliability.json"
PACKAGES = ("numpy", "opt_einsum", "torch")


@dataclass(frozen=True)
class Section:
    """What one function tried.

    Attributes
    ----------
    title, words : str
        Heading; what was tried and what would have been a failure, in Markdown.
    heads : sequence of str
        Of the columns.
    rows : sequence of sequence of str or int
    tried : int
        Cases in all.
    failures : list of str
        Each says how it is made again.
    seed : int
    """

    title: str
    words: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | int]]
    tried: int
    failures: list[str]
    seed: int
    seconds: float = 0.0
    date: str = field(default_factory=lambda: date.today().isoformat())
    versions: dict[str, str] = field(
        default_factory=lambda: {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    )


def apart(function: Callable[..., Any], cases: Iterable[tuple[Any, ...]], workers: int = 2) -> list[Any]:
    """Results of a function in processes of their own; None where one brought its process down."""

    def alone(case: tuple[Any, ...]) -> Any:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            try:
                return pool.submit(function, *case).result()
            except BrokenProcessPool:
                return None

    cases, found = list(cases), []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(function, *case) for case in cases]
        for case, future in zip(cases, futures, strict=True):
            try:
                found.append(future.result())
            except BrokenProcessPool:  # of this case or of one beside it
                found.append(alone(case))
    return found


def keep(name: str, section: Section) -> None:
    """Put a section beside those of other runs, and write the page anew."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = asdict(section)
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page, in Markdown."""
    sections = [Section(**data) for _, data in sorted(results.items())]
    lines = ["# Reliability", ""]
    lines += [
        "What was done to `tnc` to make it fail, and how often it did. This page is written by `make fuzz`, which",
        "tries everything again; the usual tests try a small part of it each time.",
        "",
    ]
    lines += _table(
        ("tried", "cases", "failures", "on"),
        [(s.title, f"{s.tried:,}", len(s.failures), s.date) for s in sections],
    )
    for s in sections:
        rows = [tuple(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) for row in s.rows]
        lines += ["", f"## {s.title}", "", *wrap(s.words, 118), "", *_table(s.heads, rows), ""]
        with_what = ", ".join(f"{name} {number}" for name, number in s.versions.items())
        lines += [f"{s.tried:,} cases in {s.seconds:.0f} s, seed {s.seed}; {with_what}; {s.date}."]
        lines += ["", *(f"* {failure}" for failure in s.failures[:50])] if s.failures else []
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    align = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(map(str, row))} |" for row in (heads, align, *rows)]
