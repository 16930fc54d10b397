"""Two processes, one per tree, and one cell at a time: A B, B A, A B, ...

What disturbs the machine disturbs both runs of a pair alike, and within a pair each tree is the first as often as the
other. A ratio is taken within a pair, never between runs of different minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.compare.verdict import Result

CELLS = Path("benchmarks", "compare", "cells")
WORKER = Path(__file__).with_name("worker.py")
# Plans are chosen by cost: with constants stated, not measured, both processes take the same ones.
COST = "flops=5e10,bytes=8e9,call=1e-5,item=3e-7"
SETTINGS = {"TNC_COST": COST, "PYTHONHASHSEED": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
SETTINGS |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
UNSET = (
    "TNC_BACKEND",
    "PYTEST_ADDOPTS",
    "PYTEST_PLUGINS",
    "PYTEST_XDIST_WORKER",  # pytest-benchmark measures nothing in a worker of pytest-xdist
    "PYTHONDONTWRITEBYTECODE",
)
START, RUN = 300.0, 180.0
"""Seconds a process may take to collect its cells, and to run one."""


class Broken(Exception):
    """A process does not start, or dies, or stops answering."""


@dataclass(frozen=True)
class Effort:
    """How many pairs a cell gets: what `seconds` allow, at least `least`, or `few` where a pair takes over `LONG`."""

    least: int
    most: int
    seconds: float
    few: int = 3
    total: float = float("inf")

    def enough(self, pairs: int, spent: float) -> bool:
        """Whether so many pairs, which took so many seconds, are enough."""
        least = self.few if spent > LONG * max(pairs, 1) else self.least
        return pairs >= self.most or (pairs >= least and spent >= self.seconds)


LONG = 0.8
SHORT_TOTAL = 105.0
"""Seconds after which a short comparison begins no cell, the second run included."""
FULL, SHORT, AGAIN = Effort(9, 25, 4.0, few=5), Effort(5, 9, 0.5, total=75.0), Effort(5, 15, 1.5)


class Side:
    """A tree and its process.

    Parameters
    ----------
    name : str
        ``here`` or ``base``.
    tree : Path
        Where `tnc` and the cells are.
    scratch : Path
        A folder for the metadata (``scratch/<name>``) and for what the process prints.
    """

    def __init__(self, name: str, tree: Path, scratch: Path) -> None:
        self.name, self.tree, self.log = name, tree.resolve(), scratch / f"{name}.log"
        self.metadata = scratch / name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, in place of one that has died."""
        self.stop()
        ours, theirs = socket.socketpair()
        path = [self.tree, self.tree / "plugins", self.metadata]
        env = {name: value for name, value in os.environ.items() if name not in UNSET}
        env |= {**SETTINGS, "PYTHONPATH": os.pathsep.join(map(str, path))}
        number = theirs.fileno()
        command = [sys.executable, "-P", str(WORKER), str(self.tree), str(self.tree / CELLS), str(number)]
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.tree, env=env, pass_fds=[number], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.connection = ours
        self.channel = ours.makefile("rw", encoding="utf-8")

    def greet(self) -> None:
        """Wait until the process has collected its cells, and learn them."""
        told = self._read(START)
        if "strangers" in told:
            raise Broken(f"the process of {self.name} would not measure its own tree: {'; '.join(told['strangers'])}")
        self.cells, self.short, self.broken = told["cells"], set(told["short"]), told["broken"]

    def run(self, cell: str) -> dict[str, Any]:
        """Run a cell once. A process that dies of it is started anew, and the cell has failed."""
        try:
            self.channel.write(json.dumps({"run": cell}) + "\n")
            self.channel.flush()
            return self._read(RUN)
        except (Broken, OSError) as error:
            self.start()
            self.greet()
            return {"failed": str(error).splitlines()[0]}

    def _read(self, seconds: float) -> dict[str, Any]:
        self.connection.settimeout(seconds)
        try:
            line = self.channel.readline()
        except TimeoutError:
            raise Broken(f"no answer within {seconds:.0f} s") from None
        if not line:
            tail = self.log.read_text(errors="replace").splitlines()[-20:]
            raise Broken("the process of " + self.name + " died\n" + "\n".join(tail))
        return json.loads(line)

    def stop(self) -> None:
        """End the process and all that it started."""
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.connection.close()
            self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@contextlib.contextmanager
def running(here: Path, base: Path, scratch: Path) -> Iterator[tuple[Side, Side]]:
    """Both processes; they end with the block, however it ends."""
    sides = Side("here", here, scratch), Side("base", base, scratch)
    try:
        for side in sides:
            side.start()
        for side in sides:  # both load their library meanwhile
            side.greet()
        yield sides
    finally:
        for side in sides:
            side.stop()


def value(answer: dict[str, Any]) -> tuple[float, str]:
    """What counts of a run: the bytes or seconds the cell itself has measured, else the fastest round."""
    extra = answer["extra"]
    for name, unit in (("bytes", "bytes"), ("seconds", "s")):
        if isinstance(extra.get(name), int | float):
            return float(extra[name]), unit
    return answer["min"], "s"


def measure(cell: str, sides: tuple[Side, Side], effort: Effort) -> Result:
    """The values of a cell, pair by pair. The first run of each side warms caches and is not counted."""
    answers = {side.name: side.run(cell) for side in sides}
    values: dict[str, list[float]] = {side.name: [] for side in sides}
    unit, begin = "", monotonic()
    while not (odd := unusual(answers)):
        pairs = len(values["here"])
        if effort.enough(pairs, monotonic() - begin):
            return Result(cell, unit, values["here"], values["base"])
        answers = {side.name: side.run(cell) for side in (sides if pairs % 2 else sides[::-1])}
        if not unusual(answers):
            for name, answer in answers.items():
                number, unit = value(answer)
                values[name].append(number)
    return Result(cell, note=odd[0], reason=odd[1])


def unusual(answers: dict[str, dict[str, Any]]) -> tuple[str, str] | None:
    """Why a pair has no ratio: a side failed or skipped the cell."""
    for kind in ("failed", "skipped"):
        sides = [name for name, answer in answers.items() if kind in answer]
        if sides:
            where = {("here",): "here", ("base",): "in the base"}.get(tuple(sides), "on both sides")
            return f"{kind} {where}", answers[sides[0]][kind]
    return None


def compare(sides: tuple[Side, Side], wanted: Iterable[str] | None, short: bool, effort: Effort) -> Iterator[Result]:
    """One result per cell, in order: those of both trees, then new and vanished ones.

    Parameters
    ----------
    sides : pair of Side
        This tree and the base, running.
    wanted : iterable of str or None
        Cells to run; None for all.
    short : bool
        Only those that either tree marks ``short``.
    effort : Effort
        Of each cell, and of all.
    """
    here, base = sides
    begin, chosen = monotonic(), None if wanted is None else set(wanted)
    for side, where in ((here, "here"), (base, "in the base")):
        for text in side.broken:
            name, _, reason = text.partition(": ")
            yield Result(name, note=f"failed {where}", reason=f"does not load: {reason}")
    for cell in here.cells:
        if (chosen is not None and cell not in chosen) or (short and cell not in here.short | base.short):
            continue
        if cell not in base.cells:
            yield Result(cell, note="new")
        elif monotonic() - begin > effort.total:
            yield Result(cell, note="no time left")
        else:
            yield measure(cell, sides, effort)
    if chosen is None:
        yield from (Result(cell, note="vanished") for cell in base.cells if cell not in here.cells)
