"""The objective of training (labels, a teacher, or both), and one pass over data for training or validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tnc.errors import TncError
from tnc.nn.data.answers import Answer, ask
from tnc.nn.data.batches import IGNORED, Batch, tensors
from tnc.nn.training.distributed import Processes
from tnc.nn.training.normalization import freeze
from tnc.nn.training.resume import Score

__all__ = ["Task", "cosine", "distillation", "length"]


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))`` over the classes, as a mean over all other axes.

    The factor ``T²`` keeps the gradient as large as that of cross-entropy at any temperature.

    Parameters
    ----------
    student, teacher : Tensor
        Logits ``float[samples, classes, ...]``.
    temperature : float
        ``T``, by which the logits are divided.

    Returns
    -------
    Tensor
        A scalar.

    References
    ----------
    Hinton, Vinyals and Dean (2015), *Distilling the Knowledge in a Neural Network*.
    """
    student_log = functional.log_softmax(student / temperature, 1)
    teacher_log = functional.log_softmax(teacher / temperature, 1)
    divergence = functional.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(1)
    return temperature**2 * divergence.mean()


def cosine(done: float, warm: float = 0.05) -> float:
    """The factor of the learning rate as a function of the share of the training that is done, from 0 to 1.

    It rises linearly to 1 until the share `warm`, and then falls to 0 along half a cosine.
    """
    if done < warm:
        return max(done, 0.01 * warm) / warm
    return (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2


@dataclass(frozen=True)
class Task:
    """The objective: ``(1 - alpha) · loss + alpha · distillation`` with a teacher, and the loss alone without.

    Attributes
    ----------
    processes : Processes
        The processes that share every batch.
    loss : callable, optional
        ``loss(outputs, labels)``. If it is omitted, the loss that the model computed is used, or else cross-entropy.
    teacher : torch.nn.Module, optional
    temperature : float
        Of the distillation.
    alpha : float
        Weight of the distillation.
    autocast : torch.dtype, optional
        The dtype of mixed precision.
    frozen : bool
        Whether batch normalization keeps its statistics in training.
    """

    processes: Processes
    loss: Callable[[Any, Any], Tensor] | None = None
    teacher: nn.Module | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    autocast: torch.dtype | None = None
    frozen: bool = False

    def train(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: Iterable[Any],
        rate: Callable[[float], float],
        shown: Callable[[], None],
    ) -> Score:
        """Train for one pass over the data.

        Parameters
        ----------
        model : torch.nn.Module
        optimizer : torch.optim.Optimizer
            Its groups have ``base``, the learning rate that `rate` scales.
        loader : iterable of batches
        rate : callable
            The factor of the learning rates, as a function of the share of this pass that is done.
        shown : callable
            Called after every step, for a progress bar.

        Returns
        -------
        Score
            Means over the samples, each before the step that learns from it.
        """
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right labels, samples
        steps = length(loader)
        model.train()
        if self.frozen:
            freeze(model)
        for k, batch in enumerate(self.processes.batches(loader, device)):
            factor = rate(k / steps)
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            optimizer.zero_grad()
            answer = self._ask(model, batch)
            objective = self._objective(answer, batch)
            torch.autograd.backward(batch.weight * objective)
            optimizer.step()
            sums += _counts(objective, answer, batch)
            shown()
        return _score(sums, self.processes)

    def score(self, model: nn.Module, loader: Iterable[Any]) -> Score:
        """Evaluate the model: the mean of the loss without distillation, and the accuracy."""
        return self._evaluated(model, loader, self._loss)

    def goal(self, model: nn.Module, loader: Iterable[Any]) -> float:
        """The mean of what training minimizes, in evaluation mode."""
        return self._evaluated(model, loader, self._objective).loss

    @torch.no_grad()
    def _evaluated(self, model: nn.Module, loader: Iterable[Any], loss: Callable[[Answer, Batch], Tensor]) -> Score:
        """The mean of a loss, and the accuracy, in evaluation mode."""
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        model.eval()
        for batch in self.processes.batches(loader, device):
            answer = self._ask(model, batch)
            sums += _counts(loss(answer, batch), answer, batch)
        return _score(sums, self.processes)

    def _objective(self, answer: Answer, batch: Batch) -> Tensor:
        """The scalar that training minimizes."""
        if self.teacher is None:
            return self._loss(answer, batch)
        with torch.no_grad():
            of_teacher = self._ask(self.teacher, batch)
        distilled = distillation(*_logits(answer, of_teacher), self.temperature)
        if self.alpha == 1 and batch.labels is None and answer.loss is None:
            return distilled
        return (1 - self.alpha) * self._loss(answer, batch) + self.alpha * distilled

    def _loss(self, answer: Answer, batch: Batch) -> Tensor:
        """The loss that the user gave, or that the model computed, or cross-entropy; a scalar."""
        if self.loss is None and answer.loss is not None:
            return answer.loss
        if batch.labels is None:
            raise TncError(
                "a batch has no labels and the model computed no loss: give pairs (inputs, labels), put 'labels' into "
                "the dict, or learn from teacher= alone, with alpha=1 and no validation"
            )
        if self.loss is not None:
            return self.loss(answer.outputs, batch.labels)
        if answer.classes is None:
            raise TncError(
                f"cross-entropy needs a tensor or logits, and the model returned {_kind(answer.outputs)}: pass loss=, "
                "called with what the model returned and the labels"
            )
        return functional.cross_entropy(answer.classes, batch.labels)

    def _ask(self, model: nn.Module, batch: Batch) -> Answer:
        """The outputs of the model for a batch, and the loss if it computes one."""
        device = next(tensors((batch.inputs, batch.labels))).device
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return ask(model, batch)


def length(loader: Any) -> float:
    """The number of batches of a pass.

    It is infinite if the loader has no length. The schedule then changes the rates between passes only.
    """
    return len(loader) if hasattr(loader, "__len__") else math.inf


def _logits(student: Answer, teacher: Answer) -> tuple[Tensor, Tensor]:
    """The logits of both, of one shape, with the classes on axis 1."""
    ours, theirs = student.classes, teacher.classes
    if ours is None or theirs is None or ours.shape != theirs.shape:
        raise TncError(
            f"distillation compares logits of one shape: the model returned {_kind(student.outputs)}, the teacher "
            f"{_kind(teacher.outputs)}; give both a head over the same classes, or leave teacher= out"
        )
    return ours, theirs


def _kind(outputs: object) -> str:
    """What a model returned, for a message."""
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    return f"a {type(outputs).__name__} without logits"


def _counts(loss: Tensor, answer: Answer, batch: Batch) -> Tensor:
    """Sums over the samples of a batch, ``float64[3]``: of the loss, of right labels, and of 1.

    They stay on the device of the batch, so that the CPU does not wait for it.
    """
    accuracy = _accuracy(answer, batch.labels)
    if accuracy is None:
        accuracy = torch.full_like(loss, math.nan, dtype=torch.float64)
    means = torch.stack([loss.detach().double(), accuracy, torch.ones_like(loss, dtype=torch.float64)])
    return batch.samples * means if batch.samples else torch.zeros_like(means)


def _accuracy(answer: Answer, labels: Any) -> Tensor | None:
    """The share of right labels, without the labels that losses leave out; None if the labels are no classes.

    It is also None for several outputs of a sample if the model computed its own loss: the model may have shifted the
    labels against the tokens.
    """
    outputs = answer.classes
    if outputs is None or not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    if (answer.loss is not None and outputs.ndim > 2) or outputs[:, 0].shape != labels.shape:
        return None
    counted = labels != IGNORED
    return ((outputs.argmax(1) == labels) & counted).double().sum() / counted.sum()


def _score(sums: Tensor, processes: Processes) -> Score:
    """The means over the samples of all processes."""
    loss, right, samples = processes.total(sums).tolist()
    if not samples:
        raise TncError("the loader gave no batch: pass a DataLoader or a list, which can be iterated once an epoch")
    return Score(loss / samples, right / samples)
