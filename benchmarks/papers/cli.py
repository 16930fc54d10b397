"""The command: choose studies, train them within the budget, and write table, JSON and plots after every row."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.papers.publish import DOCS, PAPERS, Paper, papers, publish, readable, update_index
from benchmarks.papers.study import Study, train
from tnc.errors import TncError

__all__ = ["chosen", "main", "run"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; ``queue`` has options of its own."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["queue"]:
        from benchmarks.papers.queue import main as queue

        return queue(words[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    parser.add_argument("paper", choices=PAPERS, help="or 'queue': all papers, from their state files")
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
    given = parser.parse_args(words)
    if not 0 < given.share <= 1:
        parser.error(f"--share {given.share:g} is not a share of a schedule: give more than 0 and at most 1")
    if not given.budget >= 0:
        parser.error(f"--budget {given.budget:g} is no number of minutes: give 0 or more, or inf")
    try:
        for name in PAPERS:
            readable(given.out, name)
        known = papers()
        paper = next(each for each in known if each.name == given.paper)
        picked = chosen(paper.studies, given.net, given.data)
        run(paper, picked, given.budget, given.out, given.share)
        update_index(known, given.out)
    except LookupError as error:
        parser.error(str(error))
    except (OSError, TncError) as error:  # data that cannot be had, a folder that cannot be written
        parser.error(str(error))


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


def run(paper: Paper, picked: Sequence[Study], minutes: float, out: Path, share: float = 1.0) -> None:
    """Train the picked studies, and write all results after every row.

    The remaining time is divided equally among the remaining studies. If one needs less, the others get more.

    Parameters
    ----------
    paper : Paper
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
    publish(paper, [], out)
    for at, study in enumerate(picked):
        left = (deadline - time.perf_counter()) / 60 if minutes < math.inf else math.inf
        if left <= 0:
            break
        for row in train(study, left / (len(picked) - at), share, say=_say):
            publish(paper, [row], out)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
