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
        Without any class the divergence is 0.

    Returns
    -------
    Tensor
        ``float[rows]``
    """
    valid = meaningful(y)
    left_out = torch.where(valid.any(-1, keepdim=True), -torch.inf, 0.0)  # a row without any class stays finite
    p, q = (torch.where(valid, z, left_out.to(z.dtype)).log_softmax(-1) for z in (y, x))
    gaps = torch.where(valid, p - q, 0)
    return (p.exp() * gaps).sum(-1)


class Spread:
    """The divergence of predictions from their mean: that of a model which always gives the mean.

    Where the number of classes differs from batch to batch, there is a mean for each number.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._entropy = 0.0
        self._means: dict[int, tuple[Tensor, int]] = {}  # by the number of classes: the sum, and of how many rows

    def add(self, y: Tensor) -> None:
        """Add predictions, as logits ``float[rows, classes]``. Rows without any finite number are left out."""
        valid = meaningful(y)
        log_p = torch.where(valid, y, -torch.inf)[valid.any(-1)].log_softmax(-1).double()
        self._entropy += _entropy(log_p)
        total, count = self._means.get(y.shape[1], (torch.zeros(()), 0))
        self._means[y.shape[1]] = total.to(y.device) + log_p.exp().sum(0), count + len(log_p)
        self.rows += len(log_p)

    def total(self) -> float:
        """The sum over rows, in nats. Where all predictions are the same it is the number of rows."""
        of_means = sum(count * _entropy((total / max(count, 1)).log()) for total, count in self._means.values())
        found = of_means - self._entropy
        return found if found > _ALIKE * self.rows else float(self.rows)

    @property
    def mean(self) -> float:
        """The mean over rows, in nats."""
        return self.total() / self.rows if self.rows else math.nan


def _entropy(log_p: Tensor) -> float:
    """The sum of the entropies of all rows, in nats."""
    p = log_p.exp()
    return -float(torch.where(p > 0, p * log_p, 0).sum())
