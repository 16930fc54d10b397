"""What `heal` finds out on the first batches, where the user leaves it to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import nn
from torch.optim import Optimizer

from tnc.nn.training.first import First
from tnc.nn.training.heal_rate import HEALING_RATES, Trials
from tnc.nn.training.normalization import are_better, has_statistics
from tnc.nn.training.objective import Task
from tnc.nn.training.trial import above, trial_steps

__all__ = ["Wanted"]


class Wanted(NamedTuple):
    """Settings that may be ``"auto"``, and what it takes to find them.

    Attributes
    ----------
    lr : float or "auto"
    batch_norm : {"auto", "frozen", "training"}
    steps : float
        Of the whole run; infinite if unknown.
    seed : int
        Of dropout.
    """

    lr: float | Literal["auto"]
    batch_norm: str
    steps: float
    seed: int

    def found(
        self,
        task: Task,
        model: nn.Module,
        parallel: nn.Module,
        loader: Iterable[Any],
        optimizer: Callable[[float], Optimizer],
    ) -> tuple[float, bool]:
        """The learning rate, and whether batch normalization keeps its statistics.

        The first batches are read only if they are needed.

        Parameters
        ----------
        task : Task
        model : torch.nn.Module
        parallel : torch.nn.Module
            The same model, as all processes train it together.
        loader : iterable of batches
        optimizer : callable
            A new optimizer for a rate, with ``base`` in its groups.

        Raises
        ------
        TncError
            The loader gives no batch, or every rate fails.
        """
        is_asked = self.batch_norm == "auto" and has_statistics(model)
        frozen = self.batch_norm == "frozen"
        if self.lr != "auto" and not is_asked:
            return self.lr, frozen
        first = First.of(loader, trial_steps(self.steps) if self.lr == "auto" else 0)
        if is_asked:
            frozen = are_better(model, partial(task.goal, model, first.beginning))
        if self.lr != "auto":
            return self.lr, frozen
        trials = Trials(task, model, parallel, first, optimizer, self.seed)
        rate, result = trials.best(HEALING_RATES, frozen)
        if is_asked and frozen and _result_without(trials, rate) <= result:
            # With the statistics of batches the model is as good after a few steps, and larger rates are possible.
            return trials.best([rate, *above(rate)], frozen=False)[0], False
        return rate, frozen


def _result_without(trials: Trials, rate: float) -> float:
    """The result of a trial in which batch normalization uses the statistics of its batches."""
    try:
        return trials.result(rate, frozen=False)
    except ValueError:  # torch's, for a batch of one sample; the trial with kept statistics had none
        return math.inf
