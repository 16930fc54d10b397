"""Divide calibration inputs into those that are learned from and those that judge."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import DataError
from tnc.nn.data.calls import Calls, samples_of
from tnc.nn.data.evaluation import evaluating
from tnc.nn.data.outputs import meaningful, outputs

__all__ = ["are_independent", "divided"]

_ALIKE = 1e-2
"""The largest relative difference of answers that is taken as rounding when samples change their places."""

_TRIED = 8
"""The most samples that change their places in this test."""


def divided(calls: Calls, share: float, model: nn.Module) -> tuple[Calls, Calls]:
    """Two parts of the inputs. The second one has about this share of the samples, and is held out.

    Data are often sorted, so what is held out is spread over them: some samples of every batch. Where the answers to
    samples depend on each other, as when axis 0 is time, or where only a function of the user's calls the model, whole
    batches are held out, at least one, if there are two or more.

    Parameters
    ----------
    calls : Calls
    share : float
        Above 0 and below 1.
    model : torch.nn.Module
        It is called on a few samples to see whether they are independent.

    Raises
    ------
    DataError
        There is only one sample.
    """
    if calls.samples < 2:
        raise DataError("data= has one sample: calibration needs two at least, one of which judges the result")
    if len(calls) > 1 and not (calls.forward is None and _has_independent_samples(model, calls)):
        return _divided_by_batches(calls, share)
    return _divided_by_samples(calls, share)


def _divided_by_batches(calls: Calls, share: float) -> tuple[Calls, Calls]:
    count = len(calls)
    held = min(max(1, round(share * count)), count - 1)
    chosen = {int((k + 0.5) * count / held) for k in range(held)}
    first = tuple(batch for k, batch in enumerate(calls) if k not in chosen)
    second = tuple(batch for k, batch in enumerate(calls) if k in chosen)
    return Calls(first, calls.forward), Calls(second, calls.forward)


def _divided_by_samples(calls: Calls, share: float) -> tuple[Calls, Calls]:
    first, second = [], []
    owed = max(1, ceil(share * calls.samples)) - share * calls.samples
    for batch in calls:
        size = calls.size(batch)
        owed += share * size
        taken = min(int(owed + 1e-9), size)  # sums of shares may end just below a whole number
        owed -= taken
        first += [samples_of(batch, slice(0, size - taken))] if taken < size else []
        second += [samples_of(batch, slice(size - taken, size))] if taken else []
    return Calls(tuple(first), calls.forward), Calls(tuple(second), calls.forward)


def _has_independent_samples(model: nn.Module, calls: Calls) -> bool:
    batch = calls.batches[0]
    batch = samples_of(batch, slice(0, min(_TRIED, max(2, calls.size(batch) // 2))))

    def answers(some: Any) -> list[Tensor]:
        with torch.no_grad(), evaluating(model):
            return outputs(calls.returned(model, some))

    try:
        return are_independent(answers, calls, batch)
    except Exception:  # a model that takes whole batches only; if it fails on these too, the next call tells
        return False


def are_independent(answers: Callable[[Any], list[Tensor]], calls: Calls, batch: Any) -> bool:
    """Whether answers change their places with the samples of a batch, and nothing else changes.

    It is not so where axis 0 is time, or where outputs have another axis first.

    Parameters
    ----------
    answers : callable
        The answers of a model to a batch.
    calls : Calls
    batch : object
        One of its batches, or some samples of one.
    """
    count = calls.size(batch)
    turned = torch.arange(count).roll(1)
    for x, y in zip(answers(batch), answers(samples_of(batch, turned)), strict=True):
        if len(x) != count or x.shape != y.shape:
            return False
        expected = x[turned.to(x.device)]
        valid = meaningful(expected)
        difference = torch.where(valid, y - expected, 0).float().norm()
        if not float(difference) <= _ALIKE * float(torch.where(valid, expected, 0).float().norm()):
            return False
    return True
