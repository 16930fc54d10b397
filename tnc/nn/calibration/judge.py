"""How far the outputs of a compressed model are from those of the dense one, on inputs that no fit has seen."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tnc.errors import DataError
from tnc.nn.data.calls import Calls
from tnc.nn.data.divergence import Spread, divergence
from tnc.nn.data.evaluation import evaluating
from tnc.nn.data.outputs import mask_of, meaningful, outputs, predicting, rows

__all__ = ["Judge"]

_MOST = 2**26
"""The most numbers that are kept: 256 MiB."""

_CONSTANT = 1e-10
"""Outputs whose variance is below this share of their mean square are taken as constant."""


class Judge:
    """The outputs of a model on some inputs, and the distance of other models' outputs from them.

    Parameters
    ----------
    model : torch.nn.Module
        Usually the dense model. It is called once on every batch, in evaluation mode, and put back as it was.
    calls : Calls
        Inputs that no fit uses.
    most : int
        The most numbers to keep, in float32 on the CPU. Where the outputs are more (logits over a large vocabulary),
        a random subset of their positions is kept.
    seed : int
        Of the subset.

    Raises
    ------
    DataError
        The model returns no floating tensor, or no finite number.
    """

    def __init__(self, model: nn.Module, calls: Calls, *, most: int = _MOST, seed: int = 0) -> None:
        self.calls = calls
        self._kept: list[list[_Kept]] = []
        totals: dict[tuple[int, int], _Totals] = {}
        spreads: dict[int, Spread] = {}
        samples = calls.samples
        with torch.no_grad(), evaluating(model):
            for k, batch in enumerate(calls):
                found, predicted = _outputs(calls, model, batch)
                share = most * calls.size(batch) / samples / len(found)
                kept = [_kept(x, share, (seed, k, slot), slot == predicted) for slot, x in enumerate(found)]
                for slot, (_, values, is_prediction) in enumerate(kept):
                    totals.setdefault((slot, values.shape[1]), _Totals(values.shape[1])).add(values)
                    if is_prediction:
                        spreads.setdefault(slot, Spread()).add(values)
                self._kept.append(kept)
        self._scales = _scales(totals) | {slot: spread.total() for slot, spread in spreads.items()}

    def distance(self, model: nn.Module) -> float:
        """The distance of a model's outputs from the recorded ones, relative to their variance.

        For each tensor that the models return it is ``||y' - y||² / ||y - mean(y)||²``, with the mean of each feature
        (class, channel, hidden unit) over all samples and positions; the result is the mean over these tensors. It is
        0 for equal outputs, 1 for a model that always gives the mean, and does not change with the scale of the
        outputs. Positions that an ``attention_mask`` of the batch hides do not count, nor do numbers that are not
        finite in the recorded outputs. For constant outputs the variance is replaced by ``||y||²``.

        Logits of classes, if the model names them so (see `tnc.nn.data.outputs.logits`), are compared as a softmax
        reads them: by ``KL(p || p')``, relative to ``KL(p || mean(p))``. The mean of the probabilities is over all
        samples and positions. So this is 0 and 1 for the same models.

        Returns
        -------
        float
            Infinite if the model gives a number that is not finite.

        Raises
        ------
        DataError
            The outputs are of other shapes than the recorded ones.
        """
        return math.fsum(self.parts(model))

    def parts(self, model: nn.Module) -> list[float]:
        """What each batch adds to the `distance`. Their spread shows how sure a difference between two models is.

        Raises
        ------
        DataError
            As `distance`.
        """
        found: list[float] = []
        with torch.no_grad(), evaluating(model):
            for batch, kept in zip(self.calls, self._kept, strict=True):
                seen, _ = _outputs(self.calls, model, batch)
                if len(seen) != len(kept):
                    raise DataError(f"the model returned {len(seen)} tensors, and the dense model {len(kept)}")
                gaps = [_relative(_error(x, kept[slot]), self._scales[slot]) for slot, x in enumerate(seen)]
                found.append(math.fsum(gaps) / len(self._scales))
        return [part if math.isfinite(part) else math.inf for part in found]


class _Kept(NamedTuple):
    """Kept outputs: the numbers of the rows that were taken, None for all, and ``float32[rows, features]``.

    `is_prediction` says that the features are logits of classes.
    """

    taken: Tensor | None
    values: Tensor
    is_prediction: bool


class _Totals:
    """Sums over rows, one for each feature, from which variances follow."""

    def __init__(self, features: int) -> None:
        self.count, self.sum, self.squares = torch.zeros(3, features, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        valid = meaningful(values)
        wide = torch.where(valid, values, 0).double()
        self.count += valid.sum(0)
        self.sum += wide.sum(0)
        self.squares += wide.square().sum(0)

    def norms(self) -> tuple[float, float]:
        """The squared norm after the mean is subtracted, and without that."""
        centred = self.squares - self.sum.square() / self.count.clamp(min=1)
        return float(centred.clamp(min=0).sum()), float(self.squares.sum())


def _outputs(calls: Calls, model: nn.Module, batch: Any) -> tuple[list[Tensor], int | None]:
    """What the model returns, as rows of features, and which of the tensors has logits of classes, if any."""
    mask, returned = mask_of(batch), calls.returned(model, batch)
    found = outputs(returned)
    slot = predicting(model, returned, found)
    return [rows(x, mask, of_classes=k == slot) for k, x in enumerate(found)], slot


def _kept(x: Tensor, share: float, seed: tuple[int, ...], is_prediction: bool) -> _Kept:
    """The rows of outputs, or a random subset of them that has about `share` numbers."""
    most = max(1, int(share / max(x.shape[1], 1)))
    if len(x) <= most:
        return _Kept(None, x.to("cpu", torch.float32, copy=True), is_prediction)
    taken = torch.from_numpy(np.sort(np.random.default_rng(seed).choice(len(x), most, replace=False)))
    return _Kept(taken, x[taken.to(x.device)].to("cpu", torch.float32), is_prediction)


def _scales(totals: dict[tuple[int, int], _Totals]) -> dict[int, float]:
    """By the number of an output, the squared norm that errors are relative to.

    Raises
    ------
    DataError
        No number is finite.
    """
    if not any(float(each.count.sum()) for each in totals.values()):
        raise DataError("the dense model's outputs have no finite number: repair the model, or the calibration inputs")
    scales: dict[int, float] = {}
    for slot in {slot for slot, _ in totals}:
        norms = [each.norms() for (of, _), each in totals.items() if of == slot]
        centred, plain = (sum(part) for part in zip(*norms, strict=True))
        scales[slot] = centred if centred > _CONSTANT * plain else plain
    return scales


def _error(x: Tensor, reference: _Kept) -> float:
    """The squared distance of outputs from kept ones, over the numbers that are finite there; or the divergence."""
    if reference.taken is not None and len(x) > int(reference.taken[-1]):
        x = x[reference.taken.to(x.device)]
    if x.shape != reference.values.shape:
        raise DataError(
            f"the model's outputs have {x.shape[1]} features at {len(x)} positions, and the dense model's "
            f"{reference.values.shape[1]} at {len(reference.values)}: judge models of one architecture"
        )
    if reference.is_prediction:
        return float(divergence(x.to("cpu", torch.float32), reference.values).double().sum())
    difference = x.to("cpu", torch.float32) - reference.values
    return float(torch.where(meaningful(reference.values), difference, 0).double().square().sum())


def _relative(error: float, scale: float) -> float:
    if scale:
        return error / scale
    return math.inf if error else 0.0
