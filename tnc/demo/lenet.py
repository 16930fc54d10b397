"""LeNet-5, and functions to train, evaluate and time it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tnc.demo.data import Images
from tnc.nn.training.heal import heal
from tnc.nn.training.objective import distillation

__all__ = [
    "BATCH",
    "Pairs",
    "Splits",
    "accuracy",
    "lenet5",
    "milliseconds",
    "outputs",
    "predictions",
    "silent",
    "splits",
    "step_seconds",
    "train",
]

Progress = Callable[..., Iterable[Any]]
"""``progress(iterable, total=..., description=...)`` yields the items of the iterable, and shows the progress."""


def silent(iterable: Iterable[Any], *, total: int | None = None, description: str = "") -> Iterable[Any]:
    """A `Progress` that shows nothing.

    Parameters
    ----------
    iterable : iterable
        Is returned.
    total : int, optional
        Not used.
    description : str
        Not used.
    """
    return iterable


BATCH = 128
"""Images in a training step, and in a timed forward pass."""

TEMPERATURE = 2.0
"""Temperature of the distillation, as in `heal`."""

QUIET = 1e-4
"""Adam's eps for distillation. Smaller gradients are only rounding, and Adam would scale them to full steps."""


class Pairs(NamedTuple):
    """Images ``float[n, 1, 28, 28]``, standardized, with their labels ``int64[n]``."""

    x: Tensor
    y: Tensor


class Splits(NamedTuple):
    """Data to train weights, data to choose a model, and data for the reported accuracy."""

    train: Pairs
    validation: Pairs
    test: Pairs


def lenet5() -> nn.Sequential:
    """LeNet-5 with 20 and 50 feature maps and 500 hidden units: 431080 parameters, no softmax."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 20, 5)),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(20, 50, 5)),
        ("pool2", nn.MaxPool2d(2)),
        ("flat", nn.Flatten()),
        ("fc1", nn.Linear(800, 500)),
        ("relu", nn.ReLU()),
        ("fc2", nn.Linear(500, 10)),
    ]
    model = nn.Sequential(OrderedDict(layers))
    # With channels last, pooling is three times faster on a CPU.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def splits(images: Images, held_out: float = 1 / 12) -> Splits:
    """Standardize `images`. The last fraction `held_out` of the training images becomes the validation split."""
    train = torch.tensor(images.train_images, dtype=torch.float32)
    mean, std = train.mean(), train.std().clamp(min=1e-6)

    def pairs(x: np.ndarray, y: np.ndarray) -> Pairs:
        tensor = torch.tensor(x, dtype=torch.float32).sub_(mean).div_(std)
        return Pairs(tensor[:, None], torch.tensor(y, dtype=torch.int64))

    cut = len(images.train_labels) - max(1, round(held_out * len(images.train_labels)))
    return Splits(
        pairs(images.train_images[:cut], images.train_labels[:cut]),
        pairs(images.train_images[cut:], images.train_labels[cut:]),
        pairs(images.test_images, images.test_labels),
    )


def train(
    model: nn.Module,
    pairs: Pairs,
    *,
    steps: int,
    seconds: float = math.inf,
    batch: int = BATCH,
    lr: float = 3e-3,
    taught: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    description: str = "training",
) -> int:
    """Train `model` in place with AdamW, until `steps` batches or `seconds` are used up.

    The learning rate rises once and then falls to 0. It depends on the fraction of the steps that is used up, or on
    that of the time, if that is larger. So if there is enough time, the result depends on the seed only. The learning
    rate has the same effect on factorized and dense weights: see `parameter_groups`.

    Parameters
    ----------
    model : Module
        Trained in place. In the end it is in evaluation mode.
    pairs : Pairs
        Images and labels.
    steps : int
        Largest number of steps.
    seconds : float
        Time limit.
    batch : int
        Images in a step.
    lr : float
        Largest learning rate.
    taught : Tensor (images, classes), optional
        Outputs of a teacher for every image of `pairs`. The loss is then distillation, as in `heal` with ``alpha=1``.
        It has no gradient for a model that has the same outputs already.
    seed : int
        Seed of the order of the images.
    progress : callable, optional
        See `Progress`.
    description : str
        For the progress bar.

    Returns
    -------
    int
        Number of steps taken.
    """
    if steps < 1 or seconds <= 0:
        model.eval()
        return 0
    lessons = pairs.y if taught is None else taught
    batches = _Batches(pairs.x, lessons, batch, steps, seconds, seed, progress or silent, description)
    heal(
        model,
        batches,
        loss=None if taught is None else partial(distillation, temperature=TEMPERATURE),
        epochs=1,
        lr=lr,
        eps=1e-8 if taught is None else QUIET,
        schedule=batches.rate,
        seed=seed,
        progress=False,
    )
    model.eval()
    return batches.taken


class _Batches:
    """Batches of images and of what is to be learned of them, as `heal` takes them, until the time is up.

    Parameters
    ----------
    x : Tensor (images, 1, 28, 28)
    y : Tensor (images) or (images, classes)
        Labels, or outputs of a teacher.
    batch, steps : int
        Images in a batch, and batches at most.
    seconds : float
        Time limit.
    seed : int
        Seed of the order of the images.
    progress : callable
        See `Progress`.
    description : str
        For the progress bar.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch: int,
        steps: int,
        seconds: float,
        seed: int,
        progress: Progress,
        description: str,
    ) -> None:
        self.x, self.y, self.batch, self.steps, self.seconds, self.seed = x, y, batch, steps, seconds, seed
        self.progress, self.description = progress, description
        self.started, self.taken = time.perf_counter(), 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = _order(len(self.y), self.batch, self.steps, np.random.default_rng(self.seed))
        for index in self.progress(order, total=self.steps, description=self.description):
            if self.taken and self.used >= 1:
                return
            yield self.x[index], self.y[index]
            self.taken += 1

    @property
    def used(self) -> float:
        """Fraction of the time that is used up."""
        return (time.perf_counter() - self.started) / max(self.seconds, 1e-9)

    def rate(self, done: float) -> float:
        """Fraction of the largest learning rate when this fraction of the steps is done."""
        return _one_cycle(min(1.0, max(done, self.used)))


def step_seconds(model: nn.Module, pairs: Pairs, taught: Tensor, repeats: int = 3) -> float:
    """Seconds of a step of fine-tuning, without what a training takes to begin and to end. A copy is trained.

    Parameters
    ----------
    model : Module
    pairs : Pairs
        Images and labels.
    taught : Tensor (images, classes)
        Outputs of a teacher.
    repeats : int
        Number of timed steps.
    """
    trial = copy.deepcopy(model)

    def seconds(steps: int) -> float:
        started = time.perf_counter()
        train(trial, pairs, steps=steps, lr=1e-6, taught=taught)
        return time.perf_counter() - started

    seconds(1)  # not counted: makes contraction plans
    one, several = seconds(1), seconds(1 + repeats)
    return max(several - one, several / 10) / repeats  # other work on the machine may have slowed the first


def _one_cycle(done: float, peak: float = 0.25) -> float:
    """Fraction of the largest learning rate when the fraction `done` of the training is over.

    It rises along a cosine until `peak`, then falls. It is not 0 at the first step.
    """
    done = max(done, 0.01)
    phase = done / peak if done < peak else 1 + (done - peak) / (1 - peak)
    return (1 - math.cos(math.pi * phase)) / 2


def _order(n: int, batch: int, steps: int, rng: np.random.Generator) -> Iterable[Tensor]:
    """Indices of `steps` batches. Every epoch has each image once, in a new random order."""
    batch = min(batch, n)
    per_epoch = n // batch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.from_numpy(rng.permutation(n))
        start = step % per_epoch * batch
        yield order[start : start + batch]


def accuracy(model: nn.Module, pairs: Pairs) -> float:
    """Fraction of `pairs` for which the label has the largest output."""
    return float((predictions(model, pairs.x) == pairs.y).double().mean())


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """The label with the largest output, for every image of `x`."""
    return outputs(model, x).argmax(1)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Outputs of the model in evaluation mode.

    Parameters
    ----------
    model : Module
    x : Tensor (images, 1, 28, 28)
    batch : int
        Images in a forward pass.

    Returns
    -------
    Tensor (images, classes)
    """
    model.eval()
    return torch.cat([model(x[start : start + batch]) for start in range(0, max(len(x), 1), batch)])


@torch.inference_mode()
def milliseconds(model: nn.Module, x: Tensor, repeats: int = 15) -> float:
    """Median time of a forward pass, in milliseconds.

    Parameters
    ----------
    model : Module
    x : Tensor (images, 1, 28, 28)
        The batch.
    repeats : int
        Number of timed passes.
    """
    model.eval()
    for _ in range(3):
        model(x)
    laps = []
    for _ in range(repeats):
        started = time.perf_counter()
        model(x)
        laps.append(time.perf_counter() - started)
    return 1e3 * statistics.median(laps)
