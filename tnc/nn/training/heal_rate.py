"""The learning rate of `heal`, found by short trials on the first batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tnc.errors import TncError
from tnc.nn.training.descent import Snapshot
from tnc.nn.training.objective import Task
from tnc.nn.training.trial import RATES, TRIAL_STEPS, best_rate, trial_factor

__all__ = ["HEALING_RATES", "find_rate"]

HEALING_RATES = (*RATES, 3e-3)
"""The rates that are tried. With labels there is more to learn than without, so that larger ones may do."""


def find_rate(
    task: Task, model: nn.Module, loader: Iterable[Any], optimizer: Callable[[float], Optimizer], seed: int
) -> float:
    """The learning rate after whose trial the objective is lowest on a batch that the trial did not use.

    Every trial takes the same steps on the first batches, from the present state of the model, and returns to it.

    Parameters
    ----------
    task : Task
    model : torch.nn.Module
    loader : iterable of batches
        It is iterated once more. If it has one batch only, that batch judges, too.
    optimizer : callable
        A new optimizer for a rate, with ``base`` in its groups.
    seed : int
        Of dropout.

    Raises
    ------
    TncError
        The loader is an iterator or gives no batch. Or every rate fails.
    """
    if isinstance(loader, Iterator):
        raise TncError(
            "lr='auto' tries learning rates on the first batches, which an iterator gives only once: give a DataLoader "
            "or a list, or a number for lr="
        )
    first = list(islice(loader, TRIAL_STEPS + 1))
    if not first:
        raise TncError("the loader gave no batch: pass a DataLoader or a list, which can be iterated once an epoch")
    learned, judging = first[:-1] or first, first[-1:]
    batches = list(islice(cycle(learned), TRIAL_STEPS))
    start = Snapshot(model)

    def attempt(rate: float) -> float:
        torch.manual_seed(seed)
        try:
            task.train(model, optimizer(rate), batches, lambda part: trial_factor(round(part * TRIAL_STEPS)), _nothing)
            return task.goal(model, judging)
        finally:
            start.restore()

    rate, results = best_rate(HEALING_RATES, attempt)
    if rate is None:
        raise TncError(f"the loss is not finite after a few steps, with rates from {min(results):.2g}: repair the data")
    return rate


def _nothing() -> None:
    """A step that no progress bar shows."""
