"""The command: choose studies, train them within the budget, and write table, JSON and plots after every row."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import ModuleType

from benchmarks.papers import report
from benchmarks.papers.study import Row, Study, counted, train
from tnc.errors import TncError

__all__ = ["PAPERS", "chosen", "main", "run"]

PAPERS = ("mpo", "adtn", "stp")
DOCS = Path(__file__).parents[2] / "docs" / "papers"


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    parser.add_argument("paper", choices=PAPERS)
    parser.add_argument("--net", action="append", default=[], help="networks to run (repeat); all by default")
    parser.add_argument("--data", action="append", default=[], help="data sets to run (repeat); all by default")
    parser.add_argument(
        "--budget",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="for the whole command; schedules are shortened to it and rows that do not fit are not run. "
        "0 only counts; inf trains everything in full (days on a CPU). Default: 30",
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="at most this share of every full schedule, however fast the machine"
    )
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for the page, the JSON and the plots")
    given = parser.parse_args(argv)
    paper = importlib.import_module(f"benchmarks.papers.{given.paper}")
    studies = paper.studies()
    try:
        picked = chosen(studies, given.net, given.data)
    except LookupError as error:
        parser.error(str(error))
    if not 0 < given.share <= 1:
        parser.error(f"--share {given.share:g} is not a share of a schedule: give more than 0 and at most 1")
    if not given.budget >= 0:
        parser.error(f"--budget {given.budget:g} is no number of minutes: give 0 or more, or inf")
    try:
        _readable(given.out, given.paper)
        run(paper, given.paper, studies, picked, given.budget, given.out, given.share)
    except (OSError, TncError) as error:  # data that cannot be had, a folder that cannot be written
        parser.error(str(error))


def _readable(out: Path, name: str) -> None:
    """Raise TncError unless the page can be written into `out`, with what an earlier run left there."""
    if out.exists() and not out.is_dir():
        raise TncError(f"--out {out} is a file: name a folder")
    try:
        report.page("", "", report.read(held := out / f"{name}.json"), {}, out, name)
    except Exception as error:  # a damaged file may raise anything
        raise TncError(f"{held} is damaged ({error!r}): repair it, or remove it to begin anew") from error


def chosen(studies: Sequence[Study], nets: Sequence[str], data: Sequence[str]) -> list[Study]:
    """The studies of these networks and data sets; an empty list means all.

    Raises
    ------
    LookupError
        No study is of one of them.
    """
    for name, wanted, there in (
        ("network", nets, [study.net for study in studies]),
        ("data set", data, [study.data for study in studies]),
    ):
        if unknown := [one for one in wanted if one not in there]:
            raise LookupError(
                f"no {name} {', '.join(unknown)} in this paper; there are {', '.join(dict.fromkeys(there))}"
            )
    picked = [s for s in studies if (not nets or s.net in nets) and (not data or s.data in data)]
    if not picked:
        pairs = ", ".join(f"{study.net} on {study.data}" for study in studies)
        raise LookupError(f"no study of {', '.join(nets)} on {', '.join(data)}; there are {pairs}")
    return picked


def run(
    paper: ModuleType,
    name: str,
    studies: Sequence[Study],
    picked: Sequence[Study],
    minutes: float,
    out: Path,
    share: float = 1.0,
) -> None:
    """Train the picked studies, and write all results after every row.

    The remaining time is divided equally among the remaining studies. If one needs less, the others get more.

    Parameters
    ----------
    paper : module
        The module of the paper.
    name : str
        Its name, which the files are called by.
    studies : sequence of Study
        All studies of the paper, for the tables.
    picked : sequence of Study
        The studies to train.
    minutes : float
        Time budget; infinite for full schedules.
    out : Path
        Folder of the results.
    share : float
        Largest share of every full schedule.
    """
    deadline = time.perf_counter() + 60 * minutes
    rows = [row for study in studies for row in counted(study)]
    _publish(paper, name, studies, report.merge(report.read(out / f"{name}.json"), rows, []), out)
    for at, study in enumerate(picked):
        left = (deadline - time.perf_counter()) / 60 if minutes < math.inf else math.inf
        if left <= 0:
            break
        for row in train(study, left / (len(picked) - at), share, say=_say):
            held = report.read(out / f"{name}.json")
            _publish(paper, name, studies, report.merge(held, rows, [row]), out)


def _publish(paper: ModuleType, name: str, studies: Sequence[Study], rows: Sequence[Row], out: Path) -> None:
    report.write(out / f"{name}.json", rows)
    for (net, data), section in groupby(rows, key=lambda row: (row["net"], row["data"])):
        report.plot(list(section), out / f"{name}-{report.plot_name(net, data)}")
    notes = {(study.net, study.data): study.note for study in studies}
    text = report.page(paper.TITLE, paper.INTRO, rows, notes, out, name)
    if alternatives := getattr(paper, "alternatives", None):
        text += f"\n## Compression factors of other tensorisations\n\n{alternatives()}\n"
    (out / f"{name}.md").write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
