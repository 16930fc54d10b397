"""Measure cells of the table, one after the other."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch

from benchmarks.accuracy.networks import SUBJECTS
from benchmarks.accuracy.ours import REFINED
from benchmarks.accuracy.rows import DENSE, ROWS
from benchmarks.accuracy.state import Key, State
from benchmarks.accuracy.subject import Row, Subject
from benchmarks.papers.changes import matched
from benchmarks.papers.study import stamp

__all__ = ["measure", "run"]


def measure(subject: Subject, share: float, row: Row | None, calibration: list[Any], limit: int | None) -> dict:
    """Score, kept share of the matched weights and seconds of one cell; None is the dense network."""
    model = subject.load()
    whole = sum(weight.numel() for weight in matched(model, subject.weights).values())
    begin, parameters, note, earlier = perf_counter(), whole, "", 0.0
    if row is not None:
        torch.manual_seed(0)
        model, parameters, note, earlier = row(model, subject.weights, share, calibration, subject.forward)
    made = perf_counter()
    score = subject.score(model.eval(), limit)
    found = {"score": score if math.isfinite(score) else None, "kept": parameters / whole, "parameters": parameters}
    found |= {"seconds": round(made - begin + earlier, 1), "score_seconds": round(perf_counter() - made, 1)}
    return found | ({"note": note} if note else {})


def run(
    state: State,
    networks: Sequence[str],
    shares: Sequence[float],
    chosen: Sequence[str],
    samples: int | None = None,
    limit: int | None = None,
) -> None:
    """Measure what the state does not hold yet. A row that fails is reported, and the others go on."""
    for name in networks:
        subject = SUBJECTS[name]
        settings = {"samples": samples or subject.samples, "limit": limit}
        dense = Key(name, 1.0, DENSE)
        if not state.has(dense, {"limit": limit}):
            _put(state, dense, settings, lambda s=subject: measure(s, 1.0, None, [], limit))
        cells = [Key(name, share, row) for share in shares for row in chosen]
        left = [key for key in cells if not state.has(key, settings)]
        calibration = subject.calibration(settings["samples"]) if left else []
        for key in left:
            row = ROWS[key.row]
            if key.row in REFINED:
                row = partial(row, lessons=subject.calibration(subject.lessons or settings["samples"]))
            _put(state, key, settings, lambda s=subject, k=key, r=row, c=calibration: measure(s, k.share, r, c, limit))


def _put(state: State, key: Key, settings: dict[str, Any], cell: Callable[[], dict[str, Any]]) -> None:
    """Keep what a cell gives, or its error."""
    try:
        found = cell()
    except Exception as error:  # the other cells are wanted all the same
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    state.put(key, found | settings | stamp())
    print(*key, found, file=sys.stderr, flush=True)
