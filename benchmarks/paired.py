"""Timing alternatives in turn: A B C A B C ..., so that what disturbs the machine disturbs all of them alike.

What counts is the ratio of two alternatives within a round; its median over rounds is what the report shows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

SECONDS = float(os.environ.get("BENCH_SECONDS", "1.0"))
"""About how long all rounds of a cell may take, if `LEAST` rounds fit."""
SAMPLE = 0.004
"""Shorter calls are repeated within a round for so many seconds, after one that is not timed and warms the caches."""
LEAST, MOST = 5, 15
LONG, FEW = 1.0, 2
"""Where the calls of a round take longer than `LONG`, there are `FEW` rounds: their noise is averaged within a call."""


class Paired:
    """Alternatives that are timed in turn.

    Parameters
    ----------
    calls : dict of str to callable
    always : tuple of str
        Those timed in every round; of the others, one whose call takes longer than `LONG` is timed `FEW` times.

    Attributes
    ----------
    seconds : dict of str to list of float
        Per round, seconds of one call.
    results : dict of str to object
        What the first call returned.
    failed : dict of str to str
        Why an alternative does not run.
    """

    def __init__(self, calls: dict[str, Callable[[], Any]], always: tuple[str, ...]) -> None:
        self.calls, self.results, self.failed = calls, {}, {}
        first = {name: self._probe(name) for name in calls}
        first = {name: took for name, took in first.items() if name not in self.failed}
        self.repeats = {name: max(1, math.ceil(SAMPLE / took)) for name, took in first.items()}
        lasting = [took for name, took in first.items() if name in always or took <= LONG]
        whole = sum(max(took, 2 * SAMPLE) for took in lasting)
        self.rounds = FEW if whole > 4 * LONG else min(MOST, max(LEAST, int(SECONDS / whole)))
        self.turns = {name: self.rounds if name in always or took <= LONG else FEW for name, took in first.items()}
        self.seconds: dict[str, list[float]] = {name: [] for name in first}

    def _probe(self, name: str) -> float:
        """Seconds of a call that does not plan or allocate for the first time, unless the first took long."""
        try:
            for _ in range(2):
                begin = perf_counter()
                self.results[name] = self.calls[name]()
                took = perf_counter() - begin
                if took > LONG / 4:
                    break
        except Exception as error:  # another library's failure, or a lack of memory, is an entry in the table
            if name.startswith(("dense", "tnc")):
                raise
            self.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return math.inf
        return max(took, 1e-7)

    def round(self) -> None:
        """Time every alternative once more."""
        for name, taken in self.seconds.items():
            if len(taken) < self.turns[name]:
                call, repeats = self.calls[name], self.repeats[name]
                if repeats > 1:
                    call()
                begin = perf_counter()
                for _ in range(repeats):
                    call()
                taken.append((perf_counter() - begin) / repeats)
