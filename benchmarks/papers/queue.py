"""The papers' queue: every row of every table, one after the other, each resumable from its own state file.

Rows come in the order of cost: the network with the shortest runs first, in it the dense network, then the paper's
rows, then the controls, and further seeds after the first seed of all of them. `kill -9` loses a minute at most.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from benchmarks.papers import report
from benchmarks.papers.plan import LONG, SEEDS, Cost, cost, seeds
from benchmarks.papers.publish import DOCS, Paper, papers, publish, readable, update_index
from benchmarks.papers.segments import EVERY, Paused
from benchmarks.papers.state import default_folder, locked
from benchmarks.papers.study import Method, Row, Study, stamp
from benchmarks.papers.train import Data, Split, device
from benchmarks.papers.work import Job, Terms
from tnc.demo.data import DataError
from tnc.errors import CheckpointError, TncError

__all__ = ["Queue", "main"]

KINDS = ("dense", "paper", "control")
GPU_EVERY = 10.0
"""Seconds between two saves on a GPU."""
SPARE = 30.0
"""Seconds before the end of the time on a GPU at which everything must be saved: for scores and files."""


class Item(NamedTuple):
    """A run of the queue, and what its row takes."""

    paper: Paper
    job: Job
    cost: Cost


class Queue:
    """Jobs in order, and the pages that they are published on.

    Parameters
    ----------
    known : sequence of Paper
    terms : Terms
    out : Path
        Folder of pages, JSON and plots.
    nets, names, rows : sequence of str
        Patterns for networks, papers and methods; empty lists mean all.
    say : callable
        Called with messages about the progress.
    """

    def __init__(
        self,
        known: Sequence[Paper],
        terms: Terms,
        out: Path,
        nets: Sequence[str] = (),
        names: Sequence[str] = (),
        rows: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.known, self.terms, self.out, self.say = known, terms, out, say
        self.missing: dict[str, str] = {}
        self.data: tuple[Study, Data] | None = None
        self.items = self._ordered([item for item in self._all() if _picked(item, nets, names, rows)])

    def _all(self) -> list[Item]:
        """All runs, as if every row had as many seeds as rows can have."""
        made = []
        for paper in self.known:
            held = report.merge(report.read(self.out / f"{paper.name}.json"), paper.counts, [])
            for study in paper.studies:
                own = {row["method"]: row for row in held if (row["net"], row["data"]) == (study.net, study.data)}
                for method in study.methods:
                    takes = cost(study, method, self.terms, own)
                    jobs = (Job(paper.name, study, method, seed, own[method.name]) for seed in range(_most(method)))
                    made += [Item(paper, job, takes) for job in jobs]
        return made

    def _ordered(self, items: Sequence[Item]) -> list[Item]:
        """Cheapest networks first; on a GPU the longest runs first."""
        if self.terms.gpu:
            return sorted(items, key=lambda item: (item.job.seed, -_known(item.cost.minutes)))
        sections: dict[tuple[str, str, str], list[float]] = {}
        for item in items:
            sections.setdefault(_section(item), []).append(_known(item.cost.minutes))
        return sorted(
            items,
            key=lambda item: (
                *(fmean(sections[_section(item)]), _section(item), item.job.seed),
                *(KINDS.index(item.job.method.kind), _known(item.cost.minutes)),
            ),
        )

    def run(self) -> None:
        """Work the queue off until it is empty or the time is over; publish after every row.

        Raises
        ------
        CheckpointError
            A state is damaged or of other settings, or a file cannot be written. What was saved stays.
        """
        for paper in self.known:
            publish(paper, [], self.out)
        update_index(self.known, self.out)
        for item in self.items:
            if time.perf_counter() > self.terms.deadline:
                return self.say("the time is over; everything is saved, and the same command goes on")
            if not self._settled(item):
                try:
                    self._one(item)
                except Paused:
                    return self.say(f"{item.job.name}: the time is over; it is saved, and the same command goes on")

    def _one(self, item: Item) -> None:
        """Run one job. What cannot be had or does not converge is said, and the queue goes on."""
        job = item.job
        try:
            data = self._loaded(job.study)
            self.say(f"{job.name}: {self.terms.steps(job.study, len(data.train.y)):,} steps")
            try:
                run = job.run(data, self.terms)
            finally:
                if job.state(self.terms, len(data.train.y)).values:
                    publish(item.paper, [self._row(item, data)], self.out)
                    update_index(self.known, self.out)
            self.say(f"{job.name}: {run}")
        except CheckpointError:
            raise
        except DataError as error:
            self.missing[f"{job.study.net} on {job.study.data}"] = str(error)
        except TncError as error:
            self.say(f"{job.name} ended without a result: {error}")

    def _loaded(self, study: Study) -> Data:
        """The data of a study; those of the last study are kept, on the device if that is a GPU."""
        if (name := f"{study.net} on {study.data}") in self.missing:
            raise DataError(self.missing[name])
        if self.data is None or self.data[0] is not study:
            self.data = None  # so that two data sets are never in memory
            data = study.load()
            if device().type != "cpu":
                train, validation, test = (Split(part.x.to(device()), part.y.to(device())) for part in data[:3])
                data = Data(train, validation, test, data.mean, data.std)
            self.data = study, data
        return self.data[1]

    def _settled(self, item: Item) -> bool:
        """Whether an earlier run published this seed with the same schedule, or the row needs fewer seeds."""
        job, terms = item.job, self.terms
        held = report.merge(report.read(self.out / f"{item.paper.name}.json"), item.paper.counts, [])
        row = next(row for row in held if report.key(row) == report.key(job.counts))
        if job.seed and job.seed >= seeds(_minutes(row, item.cost)):
            return True
        if not row["runs"]:
            return False
        if not job.method.trained:
            return True
        enough = min(run["steps"] for run in row["runs"]) >= max(1, round(terms.share * row["full_steps"]))
        schedules = {_plain(terms.schedule(job.study)), _plain(str(job.study.recipe))}
        return enough and len(row["runs"]) > job.seed and _plain(row["schedule"]) in schedules

    def _row(self, item: Item, data: Data) -> Row:
        """The row of a job with all runs that its states hold; the published one if it was trained for longer."""
        job, size = item.job, len(data.train.y)
        held = report.merge(report.read(self.out / f"{item.paper.name}.json"), item.paper.counts, [])
        before = next(row for row in held if report.key(row) == report.key(job.counts))
        before.pop("progress", None)
        states = [
            Job(job.paper, job.study, job.method, seed, job.counts).state(self.terms, size).values
            for seed in range(SEEDS)
        ]
        finished = [values for values in states if "run" in values]
        runs = [values["run"] for values in finished]
        extra = self._so_far(job, states[job.seed], size)
        full = self.terms.recipe(job.study).steps(size)
        if not runs or (before["runs"] and _weight(before["runs"], before["full_steps"]) > _weight(runs, full)):
            return before | extra
        return {
            **{key: value for key, value in before.items() if key != "one_seed"},
            "runs": runs,
            "schedule": self.terms.schedule(job.study),
            "steps": runs[0]["steps"],
            "full_steps": full,
            "rate": finished[0]["rate"],
            **({"one_seed": True} if runs[0]["seconds"] >= 60 * LONG else {}),
            **extra,
            **stamp(),
        }

    def _so_far(self, job: Job, state: Mapping[str, Any], size: int) -> dict[str, Any]:
        """How far a run is that has not ended, and the seconds of a step on a CPU."""
        found: dict[str, Any] = {}
        if "run" not in state and state.get("progress"):
            steps = self.terms.steps(job.study, size)
            found["progress"] = {"seed": job.seed, "steps": state["progress"], "of": steps}
        if "seconds_per_step" in state and device().type == "cpu" and not self.terms.gpu:
            found["seconds_per_step"] = state["seconds_per_step"]
        return found


def _picked(item: Item, nets: Sequence[str], names: Sequence[str], rows: Sequence[str]) -> bool:
    pairs = (item.job.study.net, nets), (item.paper.name, names), (item.job.method.name, rows)
    return all(not patterns or any(fnmatchcase(name, each) for each in patterns) for name, patterns in pairs)


def _most(method: Method) -> int:
    """The largest number of seeds; a network that is only scored has one."""
    return SEEDS if method.trained else 1


def _section(item: Item) -> tuple[str, str, str]:
    return item.paper.name, item.job.study.net, item.job.study.data


def _known(minutes: float) -> float:
    """Minutes, and infinity where they are not known."""
    return math.inf if math.isnan(minutes) else minutes


def _minutes(row: Row, takes: Cost) -> float:
    """Minutes of a run of a row over all planned steps, as its first run was timed or else as it is planned."""
    if not (row["runs"] and row["runs"][0]["steps"]):
        return takes.minutes
    first = row["runs"][0]
    return float(first["seconds"] / first["steps"] * takes.steps / 60)


def _weight(runs: Sequence[Row], full: int) -> tuple[float, int]:
    """What makes runs stay in the page: a larger share of their schedule, then more seeds."""
    return min(run["steps"] for run in runs) / full, len(runs)


def _plain(schedule: str) -> str:
    """A schedule without its precision, and without how the rate is chosen, which was worded otherwise in the past."""
    return re.sub(r" \(chosen[^)]*\)|, bfloat16$", "", schedule)


# ------------------------------------------------------------------------------------------------- command


def main(argv: Sequence[str]) -> None:
    """Run the queue from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    for name, what in (("net", "networks"), ("paper", "papers"), ("row", "rows by their method")):
        text = f"{what} to run: a pattern as 'vgg*' (repeat); all by default"
        parser.add_argument(f"--{name}", action="append", default=[], metavar="GLOB", help=text)
    parser.add_argument("--state", type=Path, help="folder of the states; in the cache folder by default")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for pages, JSON and plots")
    parser.add_argument("--share", type=float, default=1.0, help="share of every full schedule; 1 by default")
    parser.add_argument("--mixed", action="store_true", help="train in bfloat16, which some CPUs do faster")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; 1 by default")
    when = "when to stop and save; it does not change what is computed. 0 only writes the pages. Default: never"
    parser.add_argument("--budget", type=float, default=math.inf, metavar="MINUTES", help=when)
    gpu = "use CUDA with bfloat16 and larger batches, longest rows first, and be done in time"
    parser.add_argument("--gpu", type=float, metavar="MINUTES", help=gpu)
    parser.add_argument("--stand-in", action="store_true", help="with --gpu: do the same on a CPU, to try it")
    given = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        _check(given)
        queue = _queue(given, start)
        with locked(given.state or default_folder()):
            queue.run()
    except (OSError, TncError) as error:
        parser.error(str(error))
    if queue.missing:
        lines = [f"{name}: {why}" for name, why in queue.missing.items()]
        parser.exit(1, "\n".join(["These networks could not be run:", *lines]) + "\n")


def _check(given: argparse.Namespace) -> None:
    """Raise TncError unless the options make sense together and the pages can be written."""
    for name, value in (("budget", given.budget), ("gpu", given.gpu)):
        if value is not None and not value >= 0:
            raise TncError(f"--{name} {value:g} is no number of minutes: give 0 or more")
    if not 0 < given.share <= 1:
        raise TncError(f"--share {given.share:g} is not a share of a schedule: give more than 0 and at most 1")
    if given.threads < 1:
        raise TncError(f"--threads {given.threads} is no number of threads: give 1 or more")
    if given.gpu is not None and device().type == "cpu" and not given.stand_in:
        raise TncError("--gpu needs CUDA, and torch finds none here: leave it out, or add --stand-in to try it")


def _queue(given: argparse.Namespace, start: float) -> Queue:
    """The queue of the command."""
    torch.set_num_threads(given.threads)
    known = papers()
    for paper in known:
        readable(given.out, paper.name)
    seconds = min(60 * given.budget, 60 * given.gpu - SPARE if given.gpu is not None else math.inf)
    gpu = given.gpu is not None
    folder = given.state or default_folder()
    every = GPU_EVERY if gpu else EVERY
    terms = Terms(folder, given.share, gpu, start + seconds, every, given.mixed)
    queue = Queue(known, terms, given.out, given.net, given.paper, given.row, say=_say)
    if not queue.items:
        nets = dict.fromkeys(study.net for paper in known for study in paper.studies)
        raise TncError(
            f"no row is called so; papers are {', '.join(p.name for p in known)}, networks {', '.join(nets)}"
        )
    return queue


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
