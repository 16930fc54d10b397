"""Lessons of a teacher: random batches of calibration inputs, and how far the student's answers are from its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnc.nn.data.calls import Calls, samples_of
from tnc.nn.data.divergence import Spread, divergence
from tnc.nn.data.division import are_independent
from tnc.nn.data.evaluation import evaluating
from tnc.nn.data.outputs import mask_of, meaningful, rows
from tnc.nn.training.hidden import states

__all__ = ["Lessons", "usual_size"]

_CACHED = 2**27
"""The most numbers of the teacher's answers to all inputs that are kept: 512 MiB in float32."""

_MEASURED = 256
"""The number of samples that variances of the teacher's answers are measured on, at least."""


class _Scale(NamedTuple):
    """What distances from an answer of the teacher are relative to.

    Attributes
    ----------
    size : float
        Its variance, or for predictions their mean divergence from their mean.
    finite : bool
        Whether all its numbers are finite.
    is_prediction : bool
        Whether it has logits of classes.
    """

    size: float
    finite: bool
    is_prediction: bool


class Lessons:
    """Batches in random order, with the loss of a student on each.

    Where samples can be stacked and the teacher's answers to a sample do not depend on the others, batches are drawn
    sample by sample. Otherwise the loader's batches are used as they are.

    Parameters
    ----------
    teacher : torch.nn.Module
    calls : Calls
        The inputs to learn from.
    targets : tuple of str
        Modules whose outputs are compared besides those of the model.
    size : int
        Samples of a batch, if they are drawn one by one.
    seed : int
        Of the order.
    """

    def __init__(self, teacher: nn.Module, calls: Calls, targets: tuple[str, ...], size: int, seed: int) -> None:
        self.teacher, self.calls, self.targets, self.seed = teacher, calls, targets, seed
        self._predicting: int | None = None  # which of the teacher's answers are logits; set whenever it is asked
        self.whole = calls.stacked()
        if self.whole is not None and not are_independent(self._ask, calls, samples_of(self.whole, slice(0, 8))):
            self.whole = None
        self.size = min(size, calls.samples)
        self.restart()
        self._cache: dict[int, list[Tensor]] = {}
        self._whole_answers: list[Tensor] | None = None
        self._scales = self._prepared()

    def restart(self) -> None:
        """Begin the random order again."""
        self._generator = torch.Generator().manual_seed(self.seed)
        self._ahead: list[int] = []

    def loss(self, student: nn.Module) -> Tensor:
        """The loss of the student on the next batch: a scalar, with gradients.

        It is the mean squared distance of the outputs from the teacher's, relative to their variance, or the divergence
        of predictions (see `Judge.distance`). As much again is added for the hidden states: the mean over the targets.
        """
        batch, reference = self._next()
        found, hidden, _ = states(student, self.calls, batch, self.targets)
        mask = mask_of(batch)
        pairs = zip(found + hidden, reference, self._scales, strict=True)
        gaps = [_gap(x, y, mask, scale) for x, y, scale in pairs]
        of_outputs = torch.stack(gaps[: len(found)]).mean()
        return of_outputs + torch.stack(gaps[len(found) :]).mean() if hidden else of_outputs

    def _next(self) -> tuple[Any, list[Tensor]]:
        """The next batch, and the teacher's answers: its outputs, then its hidden states."""
        if self.whole is None:
            (k,) = self._drawn(len(self.calls), 1)
            return self.calls.batches[k], self._cache[k] if k in self._cache else self._ask(self.calls.batches[k])
        drawn = torch.tensor(self._drawn(self.calls.samples, self.size))
        batch = samples_of(self.whole, drawn)
        if self._whole_answers is None:
            return batch, self._ask(batch)
        return batch, [x[drawn.to(x.device)] for x in self._whole_answers]

    def _drawn(self, count: int, wanted: int) -> list[int]:
        """The next numbers below `count`: all of them in random order, then all again."""
        while len(self._ahead) < wanted:
            self._ahead += torch.randperm(count, generator=self._generator).tolist()
        drawn, self._ahead = self._ahead[:wanted], self._ahead[wanted:]
        return drawn

    def _ask(self, batch: Any) -> list[Tensor]:
        with torch.no_grad(), evaluating(self.teacher):
            found, hidden, self._predicting = states(self.teacher, self.calls, batch, self.targets)
        return found + hidden

    def _prepared(self) -> list[_Scale]:
        """Keep the teacher's answers if they are few enough; the scale of each."""
        pool = self.calls.batches
        if self.whole is not None:  # in batches as large as those of the steps, for which there is memory
            parts = torch.arange(self.calls.samples).split(self.size)
            pool = tuple(samples_of(self.whole, part) for part in parts)
        kept: list[list[Tensor]] = []
        sums: list[Tensor] = []
        numbers = samples = 0
        spread = Spread()
        for batch in pool:
            answers = self._ask(batch)
            mask = mask_of(batch)
            if self._predicting is not None:
                spread.add(rows(answers[self._predicting].float(), mask, of_classes=True))
            sums.append(torch.tensor([_moments(rows(x, mask)) for x in answers], dtype=torch.float64))
            samples += self.calls.size(batch)
            numbers += sum(x.numel() for x in answers)
            if numbers * self.calls.samples / samples <= _CACHED:
                kept.append(answers)
            elif samples >= _MEASURED:
                break
        if len(kept) == len(pool):
            self._keep(kept)
        variance, mean_square, _ = torch.stack(sums).mean(0).unbind(1)
        scales = torch.where(variance > 1e-10 * mean_square, variance, mean_square)
        scales = torch.where(scales > 0, scales, 1.0)
        finite = torch.stack(sums)[:, :, 2].amin(0) == 1
        found = [_Scale(*pair, False) for pair in zip(scales.tolist(), finite.tolist(), strict=True)]
        if self._predicting is not None:
            found[self._predicting] = _Scale(spread.mean, finite=True, is_prediction=True)
        return found

    def _keep(self, answers: list[list[Tensor]]) -> None:
        if self.whole is None:
            self._cache = dict(enumerate(answers))
        else:
            self._whole_answers = [torch.cat(parts) for parts in zip(*answers, strict=True)]


def usual_size(calls: Calls) -> int:
    """The size of the loader's first batch, within limits that suit a gradient step."""
    from_loader = calls.size(calls.batches[0])
    return min(max(from_loader, 16), 32 if calls.of_tokens() else 64)


def _gap(x: Tensor, y: Tensor, mask: Tensor | None, scale: _Scale) -> Tensor:
    """The mean squared difference relative to the variance, over the numbers that the teacher gives; or divergence."""
    if mask is not None or scale.is_prediction:
        x, y = (rows(z, mask, of_classes=scale.is_prediction) for z in (x, y))
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    if scale.is_prediction:
        return divergence(x.to(wide.dtype), wide).mean() / scale.size
    if scale.finite:  # the usual case, in one pass over large hidden states
        return functional.mse_loss(x.to(wide.dtype), wide) / scale.size
    return torch.where(meaningful(wide), x.to(wide.dtype) - wide, 0).square().mean() / scale.size


def _moments(x: Tensor) -> tuple[float, float, float]:
    """Means over entries: of the variance of their feature, of their square, and of their being numbers."""
    if not len(x):
        return 0.0, 0.0, 1.0
    valid = meaningful(x)
    wide = torch.where(valid, x, 0).float()
    return float(wide.var(0, correction=0).mean()), float(wide.square().mean()), float(valid.float().mean())
