"""`refine`: a few hundred gradient steps towards the dense model's outputs, on inputs without labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tnc.errors import TncError
from tnc.nn.calibration.judge import Judge
from tnc.nn.data.calls import Calls, Forward
from tnc.nn.data.division import divided
from tnc.nn.data.evaluation import evaluating
from tnc.nn.surgery.parameters import factorizations
from tnc.nn.training.descent import Descent, Snapshot, gradients_restored, trained_parameters
from tnc.nn.training.hidden import checked_targets
from tnc.nn.training.lessons import Lessons, usual_size
from tnc.nn.training.objective import cosine
from tnc.nn.training.progress import bar
from tnc.nn.training.trial import RATES, best_rate, trial_factor, trial_steps

__all__ = ["Refinement", "refine"]

_LOOKS = 10
"""How often the held-out distance is measured during the run."""


@dataclass(frozen=True)
class Refinement:
    """What `refine` did. Distances are those of outputs on held-out samples: see `Judge.distance`.

    Attributes
    ----------
    before, after : float
        Distance from the teacher before and after. The second one is never larger.
    rate : float, optional
        The learning rate of the run; None if every rate that was tried failed.
    steps : int
        The number of steps after which the model had its present weights; 0 if it is unchanged.
    seconds : float
    trials : dict
        The distance after a short trial of each rate; empty if the rate was given.
    watched : tuple of (int, float)
        Steps of the run, and the distance after them.
    targets : tuple of str
        Modules whose outputs were compared besides those of the model.
    batch_size : int
        Samples of a step; 0 if the loader's batches were used as they are.
    """

    before: float
    after: float
    rate: float | None
    steps: int
    seconds: float
    trials: dict[float, float]
    watched: tuple[tuple[int, float], ...]
    targets: tuple[str, ...]
    batch_size: int

    def __str__(self) -> str:
        if not self.steps:
            return f"no step has brought the outputs nearer: the model is unchanged, at distance {self.before:.4g}"
        return (
            f"held-out distance {self.before:.4g} -> {self.after:.4g} after {self.steps} steps at rate "
            f"{self.rate:.3g}, {self.seconds:.0f} s"
        )


def refine(
    model: nn.Module,
    teacher: nn.Module,
    loader: Any,
    *,
    steps: int = 200,
    lr: float | Sequence[float] | None = None,
    batch_size: int | None = None,
    targets: Sequence[str] | None = None,
    forward: Forward | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    progress: bool = True,
    max_samples: int = 2048,
) -> Refinement:
    """Bring the outputs of a compressed model nearer to those of the dense one, in place, without labels.

    The loss is the mean squared distance of outputs relative to their variance, and the same of hidden states. Logits
    that the model names so are compared by the divergence of their probabilities (see `Judge.distance`). Steps
    are Adam's, with learning rates that do not depend on the gauge of the cores, a warm-up, and a cosine to 0.
    Everything is in evaluation mode: statistics of batch normalization are kept, and dropout is off. Some samples are
    held out. The distance of outputs on them chooses the learning rate in short trials, is watched during the run, and
    chooses what is kept: the result is never worse than what came in. After an error or Ctrl-C the model is as it was.

    Parameters
    ----------
    model : torch.nn.Module
        The compressed model. All its parameters that require a gradient are trained.
    teacher : torch.nn.Module
        The dense model, on the same device: another object, that shares no parameter with the model. If its answers
        to all inputs have up to 2^27 numbers, it is called once on each; otherwise in every step.
    loader : iterable
        Inputs: batches of tensors, pairs (inputs, labels) of which the labels are left out, or dicts of named
        arguments. Where an ``attention_mask`` is among them, hidden positions do not count.
    steps : int
    lr : float or sequence of float, optional
        Learning rate, as in `parameter_groups`; or the rates to try. By default 3e-5, 1e-4, 3e-4 and 1e-3 are tried,
        with 12 to 48 steps each (a twentieth of the run), and up to two more below or above if the smallest or the
        largest is the best. The largest rate is taken that gains at least a quarter of what the best one does.
    batch_size : int, optional
        Samples of a step. By default as many as in the loader's first batch, within 16 and 64 (32 for tokens). Where
        samples have different shapes or depend on each other, or with `forward`, the loader's batches are used.
    targets : sequence of str, optional
        Modules whose outputs are compared besides those of the model. By default these are the repeated blocks of a
        model (transformer layers, residual blocks), if there are any. ``()`` compares the outputs only.
    forward : callable, optional
        ``forward(model, batch)``, where calling a model takes more than passing the batch.
    held_out : float
        The share of the samples that is held out.
    seed : int
        Of the order of the samples.
    progress : bool
        Whether to show a progress bar on standard error, if that is a terminal.
    max_samples : int
        No batch is read after this number of samples.

    Returns
    -------
    Refinement

    Raises
    ------
    DataError
        The data or the outputs of the models cannot be used.
    MatchError
        `targets` names modules that do not exist.
    TncError
        The teacher is the model or shares parameters with it; or `steps`, `lr`, `batch_size` or `held_out` is out of
        range.
    WeightError
        The model is frozen, or no parameter requires a gradient.
    """
    started = time.perf_counter()
    rates = _checked(steps, lr, batch_size, held_out)
    trained_parameters(model)
    _refuse_shared(model, teacher)
    chosen = checked_targets(model, teacher, targets)
    given = Calls.of(model, loader, forward, max_samples)
    calls, judging = divided(given, held_out, teacher)
    if not calls.samples:
        raise TncError(f"held_out={held_out} leaves no sample to learn from: lower it, or give more data")
    shown = bar("refining", steps + (len(rates) > 1) * len(rates) * trial_steps(steps), progress)
    with shown as advance, _refining(model, teacher) as start:
        judge = Judge(teacher, judging)
        lessons = Lessons(teacher, calls, chosen, batch_size or usual_size(given), seed)
        run = _Run(model, judge, lessons, start, advance)
        trials: dict[float, float] = {}
        rate: float | None = rates[0]
        if len(rates) > 1:
            rate, trials = best_rate(rates, partial(run.attempt, trial_steps(steps)), run.before)
        if rate is not None:
            run.train(rate, steps)
    seconds = time.perf_counter() - started
    size = 0 if lessons.whole is None else lessons.size
    return Refinement(run.before, run.after, rate, run.best, seconds, trials, tuple(run.watched), chosen, size)


def _checked(
    steps: int, lr: float | Sequence[float] | None, batch_size: int | None, held_out: float
) -> tuple[float, ...]:
    """The learning rates to try.

    Raises
    ------
    TncError
        A setting is out of range.
    """
    if steps < 1:
        raise TncError(f"steps={steps}: at least one is needed")
    if batch_size is not None and batch_size < 1:
        raise TncError(f"batch_size={batch_size}: a step needs one sample at least")
    if not 0 < held_out < 1:
        raise TncError(f"held_out={held_out}: give a share of the samples, above 0 and below 1")
    rates = RATES if lr is None else (lr,) if isinstance(lr, int | float) else tuple(lr)
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise TncError(f"lr={lr}: a learning rate must be finite and above 0")
    return rates


def _refuse_shared(model: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that would change with the model."""
    if teacher is model:
        raise TncError(
            "the teacher is the model itself: compress a copy, as in tnc.compress(copy.deepcopy(dense), ...)"
        )
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    shared = [trained[id(parameter)] for parameter in teacher.parameters() if id(parameter) in trained]
    of_teacher = {id(weight.cores) for weight in factorizations(teacher)}
    shared += [weight.name for weight in factorizations(model) if id(weight.cores) in of_teacher]
    if shared:
        raise TncError(
            f"the teacher shares {shared[0]} with the model, and would change with it: compress a deep copy of the "
            "dense model, or set requires_grad to False for what they share"
        )


@contextmanager
def _refining(model: nn.Module, teacher: nn.Module) -> Iterator[Snapshot]:
    """Both models in evaluation mode, and the state of the model at the start, which it has again after an error."""
    start = Snapshot(model)
    has_recurrence = any(isinstance(module, nn.RNNBase) for module in model.modules())
    # cuDNN has no gradient of recurrent layers in evaluation mode; torch's own kernels have.
    kernels = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not has_recurrence)
    with kernels, evaluating(model, teacher), gradients_restored(model), torch.enable_grad():
        try:
            yield start
        except BaseException:
            start.restore()
            raise


class _Run:
    """Steps of a model, judged by the distance of its outputs on held-out samples."""

    def __init__(
        self, model: nn.Module, judge: Judge, lessons: Lessons, start: Snapshot, advance: Callable[[], None]
    ) -> None:
        self.model, self.judge, self.lessons, self.start, self.advance = model, judge, lessons, start, advance
        self.before = self.after = judge.distance(model)
        self.best = 0
        self.watched: list[tuple[int, float]] = []

    def attempt(self, steps: int, rate: float) -> float:
        """The distance after a short trial of a rate, from the start and back to it."""
        descent = self._begin(rate)
        finite = all(self._step(descent, trial_factor(step, steps)) for step in range(steps))
        distance = self.judge.distance(self.model) if finite else math.inf
        self.start.restore()
        return distance

    def train(self, rate: float, steps: int) -> None:
        """The run. The model ends in its best state."""
        descent = self._begin(rate)
        best = self.start
        every = math.ceil(steps / _LOOKS)
        for step in range(1, steps + 1):
            if not self._step(descent, cosine(step / (steps + 1))):
                break
            if step % every and step < steps:
                continue
            distance = self.judge.distance(self.model)
            self.watched.append((step, distance))
            if distance < self.after:
                self.after, self.best, best = distance, step, Snapshot(self.model)
        best.restore()

    def _begin(self, rate: float) -> Descent:
        self.lessons.restart()
        return Descent(self.model, rate)

    def _step(self, descent: Descent, factor: float) -> bool:
        """One step; False if the loss is not finite."""
        loss = self.lessons.loss(self.model)
        if not math.isfinite(float(loss.detach())):
            return False
        descent.step(loss, factor)
        self.advance()
        return True
