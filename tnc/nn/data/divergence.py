"""How far predictions are from others: the divergence of the probabilities that a softmax reads from logits.

Distances between logits themselves would mislead. A softmax does not see a number that is added to all of them, and a
language model has tens of thousands of words whose probability is nearly 0 whatever their logit is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tnc.nn.data.outputs import meaningful

__all__ = ["Spread", "divergence"]

_ALIKE = 1e-10
"""Predictions with a smaller mean divergence from their mean, in nats, are taken as all the same."""


def divergence(x: Tensor, y: Tensor) -> Tensor:
    """``KL(softmax(y) || softmax(x))`` of every row, in nats.

    Parameters
    ----------
    x, y : Tensor
        Logits ``float[rows, classes]``. Where ``y`` is not finite or stands for minus infinity, a class is left out.

    Returns
    -------
    Tensor
        ``float[rows]``
    """
    valid = meaningful(y)
    p, q = (torch.where(valid, z, -torch.inf).log_softmax(-1) for z in (y, x))
    gaps = torch.where(valid, p - q, 0)
    return (p.exp() * gaps).sum(-1)


class Spread:
    """The divergence of predictions from their mean: that of a model which always gives the mean."""

    def __init__(self) -> None:
        self.rows = 0
        self._entropy: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0

    def add(self, y: Tensor) -> None:
        """Add predictions, as logits ``float[rows, classes]``. Rows without any finite number are left out."""
        valid = meaningful(y)
        seen = valid.any(-1)
        log_p = torch.where(valid, y, -torch.inf)[seen].log_softmax(-1).double()
        p = log_p.exp()
        self._entropy = self._entropy - torch.where(p > 0, p * log_p, 0).sum()
        self._sum = self._sum + p.sum(0)
        self.rows += len(p)

    def total(self) -> float:
        """The sum over rows, in nats. Where all predictions are the same it is the number of rows."""
        if not self.rows:
            return 0.0
        mean = torch.as_tensor(self._sum) / self.rows
        of_mean = -float(torch.where(mean > 0, mean * mean.log(), 0).sum())
        found = self.rows * of_mean - float(self._entropy)
        return found if found > _ALIKE * self.rows else float(self.rows)

    @property
    def mean(self) -> float:
        """The mean over rows, in nats."""
        return self.total() / self.rows if self.rows else math.nan
