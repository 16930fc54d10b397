"""`heal`: fine-tune a compressed model with labels, with the original model as a teacher, or with both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tnc.errors import TncError, WeightError
from tnc.nn.training.choices import Wanted
from tnc.nn.training.distributed import connect_processes
from tnc.nn.training.first import peekable
from tnc.nn.training.normalization import BATCH_NORM
from tnc.nn.training.objective import Task, cosine, length
from tnc.nn.training.parameter_groups import parameter_groups
from tnc.nn.training.progress import bar
from tnc.nn.training.resume import Epoch, Run, Score

__all__ = ["History", "heal"]

_EPS = 1e-8
"""Adam's usual eps."""

_START = 1e-3
"""A rate to begin with where it is still to be found."""


@dataclass(frozen=True)
class History:
    """The course of a training by `heal`.

    Attributes
    ----------
    epochs : tuple of Epoch
        One for each pass: ``loss``, ``accuracy``, ``seconds``, ``validation``.
    before : Score, optional
        Validation of the model before training.
    best : int
        The number of the pass after which the model had its present weights. 0 is the model before training. Without
        validation it is the last pass.
    rate : float
        The learning rate: the one that was given, or found with ``lr="auto"``.
    batch_norm : str
        ``"frozen"`` or ``"training"``: what was given, or found with ``batch_norm="auto"``.
    """

    epochs: tuple[Epoch, ...]
    before: Score | None
    best: int
    rate: float
    batch_norm: str

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
    loss: Callable[[Any, Any], Tensor] | None = None,
    epochs: int = 10,
    lr: float | Literal["auto"] = "auto",
    core_lr: float | None = None,
    weight_decay: float = 1e-4,
    eps: float = _EPS,
    temperature: float = 4.0,
    alpha: float = 0.9,
    batch_norm: Literal["auto", "frozen", "training"] = "auto",
    schedule: Callable[[float], float] = cosine,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Fine-tune a model in place with AdamW, with learning rates that do not depend on the gauge of the cores.

    If ``torchrun`` or ``accelerate launch`` started several processes, each of them calls this function with the same
    loader and trains on its part of each batch. The result is that of one process, to rounding. (Only batch
    normalization differs: it sees the part of its own process.) The connection between the processes lives as long as
    the process. If there is a connection already, it is used.

    A batch is a pair of inputs and labels, or a dict as Hugging Face's collators make. The entries of a dict are named
    arguments of the model. Its labels are ``labels``, ``label`` or ``label_ids``; the model gets them too if it takes
    them.

    A model may return a tensor. It may also return ``logits`` in a ModelOutput, another dataclass, a dict or a tuple,
    after the ``loss`` if it computed one. The classes are on axis 1 of a tensor and of such logits. For such logits of
    three axes, (batch, tokens, classes), they are on the last axis. This holds for cross-entropy, distillation (over
    all tokens) and accuracy. Labels of -100 are ignored.

    Parameters
    ----------
    model : torch.nn.Module
        On the device that it trains on; compressed or not.
    loader : iterable of (inputs, labels) or dict
        The batches. It is iterated once an epoch, so that an iterator suits a single epoch only. Its length, if it has
        one, is the number of steps of an epoch. Shuffling and dropout depend on `seed` and on the number of the epoch.
        Inputs may be a tuple of arguments or a dict of named ones.
    teacher : torch.nn.Module, optional
        Usually the model before compression, on the same device. The loss becomes
        ``(1 - alpha) · loss + alpha · distillation``. With ``alpha=1`` batches need no labels.
    validation : iterable of (inputs, labels) or dict, optional
        Data to choose the best weights on: the model ends with the weights of the best validation, which may be those
        before training. Accuracy decides, then the loss. The loss alone decides if labels are no classes, or if the
        model computes its own loss and returns several outputs for a sample (it may have shifted the labels against
        the tokens).
    loss : callable, optional
        ``loss(outputs, labels)``, a mean over the batch. It gets the tensor or the logits as the model returned them,
        and the labels of the batch, which need not be classes. If it is omitted, the loss that the model computed is
        used, or else cross-entropy.
    epochs : int
        The largest number of passes over `loader`.
    lr : float or "auto"
        Learning rate. It means the same to factorized and to dense weights: see `parameter_groups`. With ``"auto"``
        rates from 3e-5 to 3e-3 are tried on the first batches, with 12 to 48 steps each (a twentieth of the run), and
        up to two more below or above if the smallest or the largest is the best. The loss on the batches after them
        decides: the largest rate is taken that lowers it at least a quarter as far as the best one. The history says
        which.
    core_lr : float, optional
        Relative learning rate of cores, in place of `lr`: see `parameter_groups`. 0.02 to 0.06 suits ADTN's gates that
        are trained from random ones.
    weight_decay : float
        Weight decay, likewise.
    eps : float
        Adam's eps, likewise. A larger one keeps Adam from turning gradients that are only rounding into full steps.
    temperature : float
        Temperature of the distillation: see `distillation`.
    alpha : float
        Weight of the distillation, from 0 to 1.
    batch_norm : {"auto", "frozen", "training"}
        Whether batch normalization keeps its statistics during the training, or uses those of each batch. With
        ``"auto"`` they are kept if the model does much better with them on the first batches, as well-fitted networks
        do. With ``lr="auto"``, moreover, a trial must end better with them. The history says which.
    schedule : callable
        The factor of `lr` as a function of the share of the training that is done. `cosine` rises first and ends at 0.
    patience : int, optional
        Stop after this number of epochs without a better validation.
    checkpoint : str or Path, optional
        File for the state after each epoch; all processes must see it. If it exists, the run goes on from it and ends
        with the same weights as if it had not been interrupted (on a CPU to the last bit). A file of a run with other
        settings is refused. `loss` is compared by its name and numbers, `schedule` by its values.
    autocast : torch.dtype, optional
        ``torch.bfloat16`` for mixed precision.
    seed : int
        Seed of shuffling and dropout.
    progress : bool
        Whether to show a progress bar on standard error, if that is a terminal.

    Returns
    -------
    History

    Raises
    ------
    CheckpointError
        The checkpoint is damaged or of another run, or cannot be written.
    TncError
        A batch has no labels and the model computed no loss. Or a batch has a named input that the model does not
        take. Or the loss is not finite any more: the model then has the weights of the best validation, or without
        validation those of the last step. Or `epochs`, `lr`, `temperature`, `eps` or `patience` is out of range. Or
        data that are needed for several passes are an iterator. Or there is `patience` without `validation`. Or
        `autocast` is float16, which would need scaled losses.
    WeightError
        No parameter of the model requires a gradient.
    """
    settings = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "temperature": temperature, "alpha": alpha}
    settings |= _unusual(eps=eps, core_lr=core_lr, batch_norm=batch_norm)
    _check_numbers(settings)
    _check_data(epochs, loader, validation)
    _check_options(patience, validation, autocast, batch_norm)
    loader = peekable(loader)
    found = _START if lr == "auto" else lr
    new_run = partial(_new_run, model, core_lr=core_lr, weight_decay=weight_decay, eps=eps)
    run = new_run(found)
    processes = connect_processes(model, teacher)
    with _restored(model, teacher), bar("healing", epochs * length(loader), progress) as advance:
        task = Task(processes, loss, teacher, temperature, alpha, autocast)
        validate = partial(task.score, model, validation) if validation is not None else _no_validation
        if checkpoint is not None:
            settings |= _comparable(seed, patience, validation is not None, task, schedule)
        with processes.parallel(model) as parallel:
            if checkpoint is not None and Path(checkpoint).exists():
                fresh = run.base
                run.load(checkpoint, settings)
                found = float(f"{found * run.base / fresh:.6g}") if lr == "auto" else found
            else:
                _reseed(loader, seed, 0)
                wanted = Wanted(lr, batch_norm, epochs * length(loader), seed)
                found, frozen = wanted.found(task, model, parallel, loader, lambda rate: new_run(rate).optimizer)
                run = new_run(found)
                run.frozen = frozen
                run.judge(validate())
            task = replace(task, frozen=run.frozen)
            while not run.over(epochs, patience):
                done = len(run.epochs)
                _reseed(loader, seed, done)
                rate = partial(_rate, schedule, done, epochs)
                _epoch(run, partial(task.train, parallel, run.optimizer, loader, rate, advance), validate)
                if checkpoint is not None:
                    processes.first(partial(run.save, checkpoint, settings))
        run.finish()
    return History(tuple(run.epochs), run.before, run.best, found, "frozen" if run.frozen else "training")


def _no_validation() -> None:
    """The result of a validation without data."""


def _rate(schedule: Callable[[float], float], done: int, epochs: int, part: float) -> float:
    """The factor of the learning rates after `done` epochs and a part of the next one."""
    return schedule((done + part) / epochs)


def _unusual(**settings: Any) -> dict[str, Any]:
    """The settings without those of usual values, which files of earlier versions do not have."""
    usual = {"eps": _EPS, "core_lr": None, "batch_norm": "auto"}
    return {name: value for name, value in settings.items() if value != usual[name]}


def _comparable(
    seed: int, patience: int | None, has_validation: bool, task: Task, schedule: Callable[[float], float]
) -> dict[str, Any]:
    """The other settings that must be equal for a run to go on, as values that a file can hold."""
    return {
        "seed": seed,
        "patience": patience,
        "teacher": task.teacher is not None,
        "validation": has_validation,
        "loss": _described(task.loss or functional.cross_entropy),
        "schedule": [round(float(schedule(k / 8)), 6) for k in range(8)],
    }


def _described(loss: Any) -> list[Any]:
    """A loss as its name and its constants: attributes of a module, or keywords of a `partial`."""
    constants = {name: getattr(loss, name, None) for name in getattr(loss, "__constants__", ())}
    constants |= getattr(loss, "keywords", {})
    function = getattr(loss, "func", loss)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return [name, {key: value for key, value in constants.items() if isinstance(value, str | int | float)}]


def _epoch(run: Run, train: Callable[[], Score], validate: Callable[[], Score | None]) -> None:
    """Train for one pass, then validate, and record both.

    Raises
    ------
    TncError
        The loss is not finite.
    """
    started = time.perf_counter()
    score = train()
    if not math.isfinite(score.loss):
        run.finish()
        state = f"it was after epoch {run.best}, the best" if run.best_state else "the last step left it"
        raise TncError(
            f"the loss has become {score.loss}: lower the learning rate, or repair the data; the model is as {state}"
        )
    validation = validate()
    run.epochs.append(Epoch(*score, time.perf_counter() - started, validation))
    run.judge(validation)


def _check_numbers(settings: Mapping[str, Any]) -> None:
    if settings["epochs"] < 1:
        raise TncError(f"epochs={settings['epochs']}: at least one pass over the loader is needed")
    for name in ("lr", "core_lr", "temperature"):
        value = settings.get(name, 1.0)
        if name == "lr" and value == "auto":
            continue
        if isinstance(value, str) or not 0 < value < math.inf:
            raise TncError(f"{name}={value}: it must be finite and above 0" + ", or 'auto'" * (name == "lr"))
    if not 0 <= settings.get("eps", _EPS) < math.inf:
        raise TncError(f"eps={settings['eps']}: it must be finite and not below 0")


def _check_data(epochs: int, loader: object, validation: object) -> None:
    """Refuse iterators that would be iterated more than once."""
    for name, data, passes in (("loader", loader, epochs), ("validation", validation, epochs + 1)):
        if isinstance(data, Iterator) and passes > 1:
            raise TncError(
                f"{name}= ends with its first pass, because it is an iterator: give a DataLoader or a list, which can "
                "be iterated once an epoch"
            )


def _check_options(patience: int | None, validation: object, autocast: torch.dtype | None, batch_norm: str) -> None:
    if batch_norm not in BATCH_NORM:
        raise TncError(f"batch_norm={batch_norm!r}: it must be one of {', '.join(BATCH_NORM)}")
    if patience is not None and (validation is None or patience < 1):
        raise TncError(
            f"patience={patience} counts epochs without a better validation: pass validation=, and at least 1"
        )
    if autocast is torch.float16:
        raise TncError("autocast=torch.float16 needs a loss that is scaled against underflow: use torch.bfloat16")


def _new_run(model: nn.Module, lr: float, **options: Any) -> Run:
    groups = parameter_groups(model, lr, **options)
    if not groups:
        raise WeightError("no parameter of the model requires a gradient: nothing to train")
    return Run(model, torch.optim.AdamW([group | {"base": group["lr"]} for group in groups]))


def _reseed(loader: Any, seed: int, epoch: int) -> None:
    """Let random numbers of an epoch depend on the seed and on its number only, so that a run can go on with it."""
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    torch.manual_seed(state)
    generator = getattr(loader, "generator", None)
    if generator is not None:
        generator.manual_seed(state)
    sampler = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


@contextmanager
def _restored(model: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """Restore the random state of torch and the training mode of all modules at the end.

    The teacher is in evaluation mode meanwhile.
    """
    modes = [(module, module.training) for each in (model, teacher) if each is not None for module in each.modules()]
    if teacher is not None:
        teacher.eval()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        for module, training in modes:
            module.training = training
