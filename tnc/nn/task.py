"""What a model is trained for, and one pass over data: labels, a teacher, or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tnc.errors import TncError
from tnc.nn.processes import Processes
from tnc.nn.resume import Score

__all__ = ["Task", "cosine", "distillation", "length"]


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))`` over classes (axis 1), the mean over all else.

    The factor keeps the gradient as large as that of cross-entropy, whatever the temperature.

    References
    ----------
    Hinton, Vinyals and Dean (2015), *Distilling the Knowledge in a Neural Network*.
    """
    ours, theirs = (functional.log_softmax(x / temperature, 1) for x in (student, teacher))
    return temperature**2 * functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(1).mean()


def cosine(done: float, warm: float = 0.05) -> float:
    """Share of the learning rate when `done` of the training is: a linear rise, then a half cosine to 0."""
    if done < warm:
        return max(done, 0.01 * warm) / warm
    return (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2


@dataclass(frozen=True)
class Task:
    """``(1 - alpha) · loss + alpha · distillation`` where there is a teacher, the loss alone elsewhere."""

    processes: Processes
    loss: Callable[[Tensor, Tensor], Tensor]
    teacher: nn.Module | None = None
    temperature: float = 2.0
    alpha: float = 0.5
    autocast: torch.dtype | None = None

    def train(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: Iterable[Any],
        rate: Callable[[float], float],
        shown: Callable[[], None],
    ) -> Score:
        """One pass over the training data; `rate` is the share of the learning rates as a function of its progress."""
        device = next(model.parameters()).device
        sums, steps = torch.zeros(3, dtype=torch.float64, device=device), length(loader)
        model.train()
        for k, (x, y, weight) in enumerate(self.processes.batches(loader, device)):
            share = rate(k / steps)
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * share
            optimizer.zero_grad()
            outputs = self._outputs(model, x)
            value = self._value(x, outputs, y) if len(y) else outputs.sum()  # a part of a batch may be empty
            (weight * value).backward()
            optimizer.step()
            if len(y):
                sums += _counts(value, outputs, y)
            shown()
        return _score(sums, self.processes)

    @torch.no_grad()
    def score(self, model: nn.Module, loader: Iterable[Any]) -> Score:
        """Mean of the loss alone, and accuracy, of the model in evaluation."""
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        model.eval()
        for x, y, _ in self.processes.batches(loader, device):
            if len(y):
                outputs = self._outputs(model, x)
                sums += _counts(self.loss(outputs, y), outputs, y)
        return _score(sums, self.processes)

    def _value(self, x: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        if self.teacher is None:
            return self.loss(outputs, y)
        with torch.no_grad():
            taught = self._outputs(self.teacher, x)
        distilled = distillation(outputs, taught, self.temperature)
        return (1 - self.alpha) * self.loss(outputs, y) + self.alpha * distilled

    def _outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the model says, in float32 at least: losses are no matter of half precision."""
        context: AbstractContextManager[Any] = torch.autocast(
            x.device.type, dtype=self.autocast, enabled=self.autocast is not None
        )
        with context:
            outputs = model(x)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def length(loader: Any) -> float:
    """Batches of a pass; infinite where the loader cannot say, so that rates change between passes only."""
    return len(loader) if hasattr(loader, "__len__") else math.inf


def _counts(loss: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
    """Loss, right labels and samples of a batch, summed; on its device, so that nothing waits for it."""
    classes = not y.is_floating_point() and outputs.ndim == y.ndim + 1
    right = (outputs.argmax(1) == y).double().mean() if classes else torch.full_like(loss, math.nan)
    means = torch.stack([loss.detach().double(), right.double(), torch.ones_like(loss, dtype=torch.float64)])
    return len(y) * means


def _score(sums: Tensor, processes: Processes) -> Score:
    loss, right, samples = processes.total(sums).tolist()
    if not samples:
        raise TncError("the loader gave no batch: pass a DataLoader or a list, which can be iterated once an epoch")
    return Score(loss / samples, right / samples)
