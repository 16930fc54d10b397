"""The learning rate of `heal`, found by short trials on the first batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from tnc.errors import TncError
from tnc.nn.training.descent import Snapshot
from tnc.nn.training.first import First
from tnc.nn.training.objective import Task
from tnc.nn.training.trial import RATES, best_rate, trial_factor

__all__ = ["HEALING_RATES", "find_rate"]

HEALING_RATES = (*RATES, 3e-3)
"""The rates that are tried. With labels there is more to learn than without, so that larger ones may do."""


def find_rate(
    task: Task,
    model: nn.Module,
    parallel: nn.Module,
    first: First,
    optimizer: Callable[[float], Optimizer],
    seed: int,
) -> float:
    """The largest learning rate whose trial lowers the objective by a good part of what the best one does.

    Every trial takes the same steps on the first batches, from the present state of the model, and returns to it. The
    batches after them judge. `best_rate` says how large the part is.

    Parameters
    ----------
    task : Task
    model : torch.nn.Module
    parallel : torch.nn.Module
        The same model, as all processes train it together.
    first : First
    optimizer : callable
        A new optimizer for a rate, with ``base`` in its groups.
    seed : int
        Of dropout.

    Raises
    ------
    TncError
        Every rate fails.
    """
    start, steps = Snapshot(model), len(first.learned)

    def factor(part: float) -> float:
        return trial_factor(round(part * steps), steps)

    def attempt(rate: float) -> float:
        torch.manual_seed(seed)
        try:
            task.train(parallel, optimizer(rate), first.learned, factor, _nothing)
            return task.goal(model, first.judging)
        finally:
            start.restore()

    rate, results = best_rate(HEALING_RATES, attempt, task.goal(model, first.judging))
    if rate is None:
        raise TncError(f"the loss is not finite after a few steps, with rates from {min(results):.2g}: repair the data")
    return rate


def _nothing() -> None:
    """A step that no progress bar shows."""
