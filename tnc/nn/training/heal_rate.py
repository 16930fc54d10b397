"""The learning rate of `heal`, found by short trials on the first batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from tnc.errors import TncError
from tnc.nn.training.descent import Snapshot
from tnc.nn.training.objective import Task
from tnc.nn.training.trial import RATES, best_rate, trial_factor

__all__ = ["HEALING_RATES", "First", "Peeked", "find_rate"]

HEALING_RATES = (*RATES, 3e-3)
"""The rates that are tried. With labels there is more to learn than without, so that larger ones may do."""

_JUDGING = 4
"""The number of batches that judge."""


class Peeked:
    """The batches of an iterator, which may be looked at before they are used.

    Parameters
    ----------
    batches : iterator
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._seen: list[Any] = []

    def first(self, count: int) -> list[Any]:
        """The first batches. They come again when this object is iterated."""
        self._seen += islice(self._batches, max(0, count - len(self._seen)))
        return self._seen[:count]

    def __iter__(self) -> Iterator[Any]:
        while self._seen:
            yield self._seen.pop(0)
        yield from self._batches


class _Part(list[Any]):
    """Batches of a loader. What says that the loader divides them among the processes is said of these, too."""

    def __init__(self, batches: Iterable[Any], loader: Any) -> None:
        super().__init__(batches)
        for name in ("sampler", "gradient_state"):
            if hasattr(loader, name):
                setattr(self, name, getattr(loader, name))


class First(NamedTuple):
    """The first batches of a loader.

    Attributes
    ----------
    learned : list
        Those that the steps of a trial learn from.
    judging : list
        Those after them, which judge. If there is one batch only, it does both.
    """

    learned: list[Any]
    judging: list[Any]

    @classmethod
    def of(cls, loader: Iterable[Any], steps: int) -> First:
        """Read the first batches, which are enough for trials of so many steps.

        Raises
        ------
        TncError
            The loader gives no batch.
        """
        count = steps + _JUDGING
        found = loader.first(count) if isinstance(loader, Peeked) else list(islice(loader, count))
        if not found:
            raise TncError("the loader gave no batch: pass a DataLoader or a list, which can be iterated once an epoch")
        judging = min(_JUDGING, max(1, len(found) // 4))
        learned = list(islice(cycle(found[:-judging] or found), steps))
        return cls(_Part(learned, loader), _Part(found[-judging:], loader))


def find_rate(
    task: Task,
    model: nn.Module,
    parallel: nn.Module,
    first: First,
    optimizer: Callable[[float], Optimizer],
    seed: int,
) -> float:
    """The largest learning rate whose trial lowers the objective about as far as the best one.

    Every trial takes the same steps on the first batches, from the present state of the model, and returns to it. The
    batches after them judge.

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
