"""Training that goes on after a kill, by the checkpoints of `tnc.nn.heal`.

`heal` saves model, optimizer and number of passes after every pass. Here a pass is a *segment* of the run, of about as
many steps as fit into `EVERY` seconds, so that a kill loses no more than that.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tnc
from benchmarks.papers.train import Data, Recipe, augment
from tnc.nn.training.objective import cosine

__all__ = ["EVERY", "Paused", "Segments", "go_on", "pace"]

EVERY = 40.0
"""Seconds between two saves on a CPU, about."""


class Paused(Exception):
    """The time is over before the run is; everything up to the last segment is saved."""


class Segments:
    """The batches of a run of `steps` steps, segment by segment.

    Every example comes once per pass over the data, in a new order in each pass. The order depends on the seed and on
    the number of the pass. Augmentation and dropout depend on the seed and on the number of the step. So the length of
    the segments does not change what is learned, and neither does a kill.

    Parameters
    ----------
    data : Data
    recipe : Recipe
    steps : int
        Steps of the whole run.
    seed : int
    length : int
        Steps per segment.
    expected : float
        Seconds that the next segment will take, as far as is known; measured from the first segment on.
    deadline : float
        Time of `time.perf_counter` at which a segment must have ended.
    saved : callable
        Called with the number of steps that are saved, whenever that changes.
    """

    def __init__(
        self,
        data: Data,
        recipe: Recipe,
        *,
        steps: int,
        seed: int,
        length: int,
        expected: float = 0.0,
        deadline: float = math.inf,
        saved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.data, self.recipe, self.steps, self.seed, self.length = data, recipe, steps, seed, length
        self.expected, self.deadline, self.saved = expected, deadline, saved
        self.batch, self.segment = min(recipe.batch, len(data.train.y)), 0
        self.order: tuple[int, Tensor] = (-1, torch.arange(0))
        self.sampler = self  # `heal` tells the sampler of a loader the number of the pass

    @property
    def count(self) -> int:
        """The number of segments; the last one may be shorter."""
        return math.ceil(self.steps / self.length)

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, segment: int) -> None:
        """Go to a segment. All segments before it are saved."""
        self.segment = segment
        self.saved(min(self.steps, segment * self.length))

    def rate(self, share: float) -> float:
        """The factor of the learning rate when this share of the segments is done, the last one taken as a whole."""
        return cosine(share * self.count * self.length / self.steps)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = time.perf_counter()
        if start + self.expected > self.deadline:
            raise Paused
        first = self.segment * self.length
        for step in range(first, min(first + self.length, self.steps)):
            yield self._drawn(step)
        self.expected = time.perf_counter() - start

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of one step; torch's generator is set for the dropout of this step."""
        per_pass = len(self.data.train.y) // self.batch
        done, place = divmod(step, per_pass)
        if self.order[0] != done:
            order = torch.randperm(len(self.data.train.y), generator=_generator(self.seed, 0, done))
            self.order = done, order
        index = self.order[1][place * self.batch : (place + 1) * self.batch]
        device, part = self.data.mean.device, self.data.train
        x = self.data.prepared(part.x[index].to(device))
        if self.recipe.augmented:
            x = augment(x, _generator(self.seed, 1, step))
        torch.manual_seed(_number(self.seed, 2, step))
        return x, part.y[index].to(device)


def _number(*parts: int) -> int:
    """A seed that depends on all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(_number(*parts))


def go_on(
    model: nn.Module,
    batches: Segments,
    rate: float,
    file: Path | None,
    teacher: nn.Module | None = None,
    autocast: torch.dtype | None = None,
    core_rate: float | None = None,
) -> float:
    """Train `model` in place to the end of the run, from where `file` left it, or from its beginning.

    Parameters
    ----------
    model : torch.nn.Module
        As it was at the beginning of the run.
    batches : Segments
    rate : float
        Learning rate.
    file : Path, optional
        The state after the last segment. Without it nothing is saved.
    teacher : torch.nn.Module, optional
        The trained dense network, used if the recipe asks for distillation.
    autocast : torch.dtype, optional
        The dtype of mixed precision.
    core_rate : float, optional
        Relative learning rate of cores.

    Returns
    -------
    float
        Seconds of all segments, those of earlier processes included.

    Raises
    ------
    Paused
        The time is over.
    CheckpointError
        The file is damaged or of another run, or it cannot be written: the last one stays then.
    TncError
        The loss is not finite any more.
    """
    recipe = batches.recipe
    history = tnc.nn.heal(
        model,
        batches,
        teacher=teacher if recipe.taught else None,
        loss=nn.CrossEntropyLoss(label_smoothing=recipe.smoothing),
        epochs=batches.count,
        lr=rate,
        core_lr=core_rate,
        weight_decay=recipe.decay,
        schedule=batches.rate,
        checkpoint=file,
        autocast=autocast,
        seed=batches.seed,
        progress=False,
        batch_norm="training",  # as in the papers
    )
    return float(sum(epoch.seconds for epoch in history.epochs))


def pace(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    autocast: torch.dtype | None = None,
    steps: int = 3,
) -> float:
    """Seconds per training step, measured on a copy of the model after one step to warm up."""
    model = copy.deepcopy(model)
    for count in (1, steps):
        batches = Segments(data, recipe, steps=count, seed=0, length=count)
        start = time.perf_counter()
        go_on(model, batches, recipe.rates[0], None, teacher, autocast)
    return (time.perf_counter() - start) / steps
