"""Rows into the JSON files, pages and plots of ``docs/papers``, and everything together into the index."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from benchmarks.papers import index, report
from benchmarks.papers.plan import cost
from benchmarks.papers.state import write_text
from benchmarks.papers.study import Row, Study, counted
from benchmarks.papers.work import Terms
from tnc.errors import TncError

__all__ = ["DOCS", "PAPERS", "Paper", "papers", "publish", "readable", "update_index"]

PAPERS = ("mpo", "adtn", "stp")
DOCS = Path(__file__).parents[2] / "docs" / "papers"


class Paper(NamedTuple):
    """A paper: its module, its name, which the files are called by, and all of its studies with their counts."""

    module: ModuleType
    name: str
    studies: Sequence[Study]
    counts: Sequence[Row]


@cache
def papers() -> tuple[Paper, ...]:
    """The three papers; to count them takes seconds."""
    made = []
    for name in PAPERS:
        module = importlib.import_module(f"benchmarks.papers.{name}")
        studies = module.studies()
        made.append(Paper(module, name, studies, [row for study in studies for row in counted(study)]))
    return tuple(made)


def readable(out: Path, name: str) -> None:
    """Raise TncError unless the page can be written into `out`, with what an earlier run left there."""
    if out.exists() and not out.is_dir():
        raise TncError(f"--out {out} is a file: name a folder")
    try:
        report.page("", "", report.read(held := out / f"{name}.json"), {}, out, name)
    except Exception as error:  # a damaged file may raise anything
        raise TncError(f"{held} is damaged ({error!r}): repair it, or remove it to begin anew") from error


def publish(paper: Paper, new: Sequence[Row], out: Path) -> None:
    """Write JSON, plots and page of a paper, with these new rows in place of the earlier ones.

    Without new rows everything is written anew from the earlier ones.

    Raises
    ------
    TncError
        A file cannot be written; the earlier one stays.
    """
    path = out / f"{paper.name}.json"
    rows = report.merge(report.read(path), paper.counts, new)
    report.write(path, rows)
    changed = {(row["net"], row["data"]) for row in new or rows}  # a plot takes a second
    for (net, data), section in groupby(rows, key=lambda row: (row["net"], row["data"])):
        if (net, data) in changed:
            report.plot(list(section), out / f"{paper.name}-{report.plot_name(net, data)}")
    notes = {(study.net, study.data): study.note for study in paper.studies}
    text = report.page(paper.module.TITLE, paper.module.INTRO, rows, notes, out, paper.name)
    if alternatives := getattr(paper.module, "alternatives", None):
        text += f"\n## Compression factors of other tensorisations\n\n{alternatives()}\n"
    write_text(out / f"{paper.name}.md", text)


def update_index(known: Sequence[Paper], out: Path) -> None:
    """Write the generated sections of the index, from the JSON files of these papers, and its figure."""
    sections, waiting = [], []
    for paper in known:
        rows = report.merge(report.read(out / f"{paper.name}.json"), paper.counts, [])
        for study in paper.studies:
            own = [row for row in rows if (row["net"], row["data"]) == (study.net, study.data)]
            sections.append((paper.name, own))
            by_name = {row["method"]: row for row in own}
            for method in study.methods:
                row = by_name[method.name]
                if not report.started(row):
                    waiting.append((paper.name, row, cost(study, method, Terms(out), by_name)))
    index.update(out, sections, waiting)
