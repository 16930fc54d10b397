"""`heal`: fine-tune a compressed model, from its labels and from the model it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from tnc.errors import TncError, WeightError
from tnc.nn.optimizer import parameter_groups
from tnc.nn.processes import together
from tnc.nn.resume import Epoch, Run, Score
from tnc.nn.task import Task, cosine, length

__all__ = ["History", "heal"]


@dataclass(frozen=True)
class History:
    """What `heal` did.

    Attributes
    ----------
    epochs : tuple of Epoch
        One for each pass: ``loss``, ``accuracy``, ``seconds``, ``validation``.
    before : Score, optional
        Validation of the model as it was given.
    best : int
        The pass after which the model was as it is now; 0 is the model as given. Without validation, the last.
    """

    epochs: tuple[Epoch, ...]
    before: Score | None
    best: int

    @property
    def validation(self) -> Score | None:
        """Validation of the model as it is now."""
        return self.epochs[self.best - 1].validation if self.best else self.before


def heal(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    validation: Iterable[Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    epochs: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    temperature: float = 2.0,
    alpha: float = 0.5,
    schedule: Callable[[float], float] = cosine,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Fine-tune a model in place with AdamW, at rates that do not depend on the gauge of the cores.

    Started by ``torchrun`` or ``accelerate launch``, every process calls this with the same loader and trains on its
    part of each batch, so that the result is that of one process, to rounding. (Batch normalization alone sees only
    its process's part.)

    Parameters
    ----------
    model : torch.nn.Module
        On the device it trains on; compressed or not.
    loader : iterable of (inputs, labels)
        Batches; iterated once an epoch, so no iterator for more than one. Shuffling and dropout follow `seed` and the
        epoch's number.
    teacher : torch.nn.Module, optional
        Usually the model before compression, on the same device. The loss becomes
        ``(1 - alpha) · loss + alpha · distillation``.
    validation : iterable of (inputs, labels), optional
        The model ends as it was when this was predicted best; the model as given counts too.
    loss : callable, optional
        ``loss(outputs, labels)``, a mean over the batch; cross-entropy where not given.
    epochs : int
        Passes over `loader`, at most.
    lr, weight_decay : float
        What they mean to a dense weight they mean to a factorized one: see `parameter_groups`.
    temperature, alpha : float
        Of the distillation, as `distillation` says; its weight.
    schedule : callable
        Share of `lr` as a function of the share of the training that is done; `cosine` warms up and ends at 0.
    patience : int, optional
        Stop when so many epochs have brought no better validation.
    checkpoint : str or Path, optional
        File for the state after each epoch, which all processes see. Where it exists the run goes on from it, and ends
        with the same weights as if it had not been interrupted (on a CPU to the last bit). Other settings are refused:
        `loss` is known by its name and numbers, `schedule` by its values.
    autocast : torch.dtype, optional
        ``torch.bfloat16`` for mixed precision.
    seed : int
    progress : bool
        A bar on standard error, where that is a terminal.

    Returns
    -------
    History

    Raises
    ------
    CheckpointError
        The checkpoint is damaged or of another run, or cannot be written.
    TncError
        The loss is not finite any more: the model is as it was when validation was best, or without validation as the
        last step left it. Or a rate or temperature is not above 0, data end with their first pass, `patience` has no
        validation, or float16, which needs scaled losses, is asked for.
    WeightError
        No parameter of the model requires a gradient.
    """
    settings = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "temperature": temperature, "alpha": alpha}
    _check(settings, patience, loader, validation, autocast)
    run = _started(model, lr, weight_decay)
    with together(model) as processes, _as_before(model, teacher), _bar(epochs * length(loader), progress) as shown:
        task = Task(processes, loss or functional.cross_entropy, teacher, temperature, alpha, autocast)
        judged = partial(task.score, model, validation) if validation is not None else lambda: None
        known = _compared(seed, patience, validation is not None, task, schedule) if checkpoint is not None else {}
        if checkpoint is not None and Path(checkpoint).exists():
            run.load(checkpoint, settings | known)
        else:
            run.judge(judged())
        parallel = processes.wrap(model)
        while not run.over(epochs, patience):
            _reseed(loader, seed, done := len(run.epochs))
            rate = partial(_rate, schedule, done, epochs)
            _epoch(run, partial(task.train, parallel, run.optimizer, loader, rate, shown), judged)
            if checkpoint is not None:
                processes.first(partial(run.save, checkpoint, settings | known))
        del parallel  # or it would be the last to hold the connection, when `together` has closed it
        run.finish()
    return History(tuple(run.epochs), run.before, run.best)


def _rate(schedule: Callable[[float], float], done: int, epochs: int, part: float) -> float:
    return schedule((done + part) / epochs)


def _compared(seed: int, patience: int | None, judged: bool, task: Task, schedule: Any) -> dict[str, Any]:
    """What else must be as it was for a run to go on: of functions what a file can hold, a name and numbers."""
    loss: Any = task.loss
    held = {n: getattr(loss, n, None) for n in getattr(loss, "__constants__", ())} | getattr(loss, "keywords", {})
    named = getattr(loss, "func", loss)  # of a partial
    name = getattr(named, "__qualname__", type(named).__qualname__)
    found = {"seed": seed, "patience": patience, "teacher": task.teacher is not None, "validation": judged}
    numbers = {n: x for n, x in held.items() if isinstance(x, str | int | float)}
    return found | {"loss": [name, numbers], "schedule": [round(float(schedule(k / 8)), 6) for k in range(8)]}


def _epoch(run: Run, train: Callable[[], Score], judged: Callable[[], Score | None]) -> None:
    """One pass over the training data, and its judgement."""
    started = time.perf_counter()
    if not math.isfinite((score := train()).loss):
        run.finish()
        now = f"it was after epoch {run.best}, the best" if run.best_state else "the last step left it"
        said = f"the loss has become {score.loss}: lower the learning rate, or repair the data"
        raise TncError(f"{said}; the model is as {now}")
    found = judged()
    run.epochs.append(Epoch(*score, time.perf_counter() - started, found))
    run.judge(found)


def _check(
    settings: Mapping[str, float], patience: int | None, loader: Any, validation: Any, autocast: torch.dtype | None
) -> None:
    epochs = settings["epochs"]
    if epochs < 1:
        raise TncError(f"epochs={epochs}: at least one pass over the loader is needed")
    for name in ("lr", "temperature"):
        if not 0 < settings[name] < math.inf:
            raise TncError(f"{name}={settings[name]}: it must be finite and above 0")
    for name, data, passes in (("loader", loader, epochs), ("validation", validation, epochs + 1)):
        if isinstance(data, Iterator) and passes > 1:
            raise TncError(f"{name}= ends with its first pass: give a DataLoader or a list, iterated once an epoch")
    if patience is not None and (validation is None or patience < 1):
        raise TncError(
            f"patience={patience} counts epochs without a better validation: pass validation=, and at least 1"
        )
    if autocast is torch.float16:
        raise TncError("autocast=torch.float16 needs a loss that is scaled against underflow: use torch.bfloat16")


def _started(model: nn.Module, lr: float, weight_decay: float) -> Run:
    groups = parameter_groups(model, lr, weight_decay=weight_decay)
    if not groups:
        raise WeightError("no parameter of the model requires a gradient: nothing to train")
    return Run(model, torch.optim.AdamW([group | {"base": group["lr"]} for group in groups]))


def _reseed(loader: Any, seed: int, epoch: int) -> None:
    """Random numbers of an epoch depend on the seed and its number alone: an interrupted run finds them again."""
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    torch.manual_seed(state)
    if (generator := getattr(loader, "generator", None)) is not None:
        generator.manual_seed(state)
    if hasattr(sampler := getattr(loader, "sampler", None), "set_epoch"):
        sampler.set_epoch(epoch)


@contextmanager
def _as_before(*models: nn.Module | None) -> Iterator[None]:
    """Afterwards random numbers go on as if nothing had drawn any, and every module trains or not as it did.

    All but the first model are in evaluation meanwhile.
    """
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    for model in models[1:]:
        if model is not None:
            model.eval()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _bar(total: float, wanted: bool) -> Iterator[Callable[[], None]]:
    """A bar that is a step longer at every call; nothing where standard error is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (wanted and console.is_terminal)) as shown:
        task = shown.add_task("healing", total=total if math.isfinite(total) else None)
        yield partial(shown.advance, task)
