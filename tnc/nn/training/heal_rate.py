"""Short trials of `heal` on the first batches, which find its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from tnc.errors import TncError
from tnc.nn.training.descent import Snapshot
from tnc.nn.training.first import First
from tnc.nn.training.objective import Task
from tnc.nn.training.trial import RATES, best_rate, trial_factor

__all__ = ["HEALING_RATES", "Trials"]

HEALING_RATES = (*RATES, 3e-3)
"""The rates that are tried. With labels there is more to learn than without, so that larger ones may do."""


class Trials:
    """Short trials of `heal`. Each takes the same steps on the first batches, and is judged by the batches after them.

    After a trial the model is as it was.

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
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        parallel: nn.Module,
        first: First,
        optimizer: Callable[[float], Optimizer],
        seed: int,
    ) -> None:
        self.task, self.model, self.parallel, self.first = task, model, parallel, first
        self.optimizer, self.seed = optimizer, seed
        self.start = Snapshot(model)
        self.known: dict[tuple[float, bool], float] = {}

    def result(self, rate: float, frozen: bool) -> float:
        """The objective after a trial, which is made once.

        Parameters
        ----------
        rate : float
            The learning rate.
        frozen : bool
            Whether batch normalization keeps its statistics.
        """
        if (rate, frozen) not in self.known:
            self.known[rate, frozen] = self._tried(rate, frozen)
        return self.known[rate, frozen]

    def _tried(self, rate: float, frozen: bool) -> float:
        steps = len(self.first.learned)

        def factor(part: float) -> float:
            return trial_factor(round(part * steps), steps)

        torch.manual_seed(self.seed)
        task = replace(self.task, frozen=frozen)
        try:
            task.train(self.parallel, self.optimizer(rate), self.first.learned, factor, _nothing)
            return task.goal(self.model, self.first.judging)
        finally:
            self.start.restore()

    def best(self, rates: Iterable[float], frozen: bool) -> tuple[float, float]:
        """The largest learning rate whose trial lowers the objective by a good part of what the best one does.

        `best_rate` says how large the part is.

        Parameters
        ----------
        rates : iterable of float
        frozen : bool
            As in `result`.

        Returns
        -------
        float, float
            The rate, and the result of its trial.

        Raises
        ------
        TncError
            Every rate fails.
        """
        before = self.task.goal(self.model, self.first.judging)
        rate, results = best_rate(rates, partial(self.result, frozen=frozen), before)
        if rate is None:
            raise TncError(
                f"the loss is not finite after a few steps, with rates from {min(results):.2g}: repair the data"
            )
        return rate, results[rate]


def _nothing() -> None:
    """A step that no progress bar shows."""
