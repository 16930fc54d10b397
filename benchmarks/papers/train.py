"""Training for a stated number of steps with the data in memory: one loop for every row of a table."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import tnc
from tnc.data import Images

__all__ = ["TRIAL", "Batches", "Data", "Recipe", "Split", "accuracy", "device", "fit", "pace", "split"]


class Split(NamedTuple):
    """Inputs ``uint8[n, c, h, w]``, or features ``float32[n, d]``, and labels ``int64[n]``."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """What weights are fitted on, what is chosen on, what is reported; mean and deviation of an input's channels."""

    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor

    def prepared(self, x: Tensor) -> Tensor:
        """Inputs as a network takes them."""
        return x.to(self.mean.device, torch.float32).sub_(self.mean).div_(self.std) if x.dtype == torch.uint8 else x


TRIAL = 0.2
"""Share of the steps after which a learning rate is judged."""
LEAST = 200
"""Steps of such a trial at least: the first few hundred favour rates under which random gates hardly move."""


@dataclass(frozen=True)
class Recipe:
    """A schedule of `tnc.nn.heal`, whose rates mean the same to a factorized weight and to a dense one.

    Attributes
    ----------
    epochs : float
        Passes over the training split, of the full schedule.
    rates : tuple of float
        Of several, every row takes the one that does best on the validation split in a trial.
    taught : bool
        Whether half of the loss is the distillation of the trained dense network.
    smoothing : float
        Share of every label that is spread over all classes.
    """

    epochs: float
    batch: int
    rates: tuple[float, ...]
    decay: float = 0.0
    augmented: bool = False
    taught: bool = False
    smoothing: float = 0.0

    def steps(self, size: int) -> int:
        """Steps of the full schedule on so many examples."""
        return max(1, round(self.epochs * size / self.batch))

    def trial(self, steps: int) -> int:
        """Steps after which a learning rate is judged, in a schedule of so many."""
        return min(steps, max(round(TRIAL * steps), LEAST))

    def affordable(self, total: float, seeds: int) -> int:
        """The longest schedule that takes `total` steps for all seeds and one trial of every rate."""
        trials = len(self.rates) if len(self.rates) > 1 else 0
        long = min(total / (seeds + TRIAL * trials), (total - LEAST * trials) / seeds)
        return int(max(long, total / (seeds + trials)))

    def __str__(self) -> str:
        crops = ", random crops and flips" if self.augmented else ""
        decay = f", weight decay {self.decay:g}" if self.decay else ""
        taught = ", taught by the dense network" if self.taught else ""
        smooth = f", labels smoothed by {self.smoothing:g}" if self.smoothing else ""
        choice = " or ".join(f"{rate:g}" for rate in self.rates)
        when = f"after {TRIAL:.0%} of the steps and {LEAST} at least, seed 0"
        chosen = f" (chosen on validation {when})" if len(self.rates) > 1 else ""
        rate = f"rate {choice}{chosen} falling to 0 along a cosine"
        return f"AdamW, {rate}{decay}, batch {self.batch}{crops}{smooth}{taught}, {self.epochs:g} epochs"


def device() -> torch.device:
    """Where training runs: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split(images: Images, held_out: float = 0.1, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> Data:
    """The last `held_out` of the training images become the validation split.

    Parameters
    ----------
    mean, std : tuple of float
        Of the channels, in units of 0 to 1, where a trained network fixes them; else those of the rest of the training
        images.
    """

    def pairs(x: np.ndarray, y: np.ndarray) -> Split:
        x = x[..., None] if x.ndim == 3 else x
        return Split(
            torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), torch.tensor(y, dtype=torch.int64)
        )

    cut = len(images.train_labels) - max(1, round(held_out * len(images.train_labels)))
    train = pairs(images.train_images[:cut], images.train_labels[:cut])
    sample = train.x[:: max(1, cut // 10000)].double()
    moments = [
        255 * torch.tensor(given, dtype=torch.float64) if given else found
        for given, found in ((mean, sample.mean((0, 2, 3))), (std, sample.std((0, 2, 3)).clamp(min=1e-6)))
    ]
    held = (pairs(images.train_images[cut:], images.train_labels[cut:]), pairs(images.test_images, images.test_labels))
    return Data(train, *held, *(moment.float().reshape(-1, 1, 1).to(device()) for moment in moments))


class Batches:
    """Prepared batches of a split, `steps` of them, or one and those before `deadline`.

    Every example comes once per epoch, in a new order each time; `taken` says how many batches there were.
    """

    def __init__(
        self,
        data: Data,
        part: Split,
        *,
        batch: int,
        steps: int,
        seed: int = 0,
        augmented: bool = False,
        shuffled: bool = True,
        deadline: float = math.inf,
    ) -> None:
        self.data, self.part, self.steps, self.augmented, self.shuffled = data, part, steps, augmented, shuffled
        self.batch, self.seed, self.deadline, self.taken = min(batch, len(part.y)), seed, deadline, 0
        self.generator, self.order = torch.Generator().manual_seed(seed), torch.arange(0)

    @classmethod
    def once(cls, data: Data, part: Split, batch: int = 500, **options: Any) -> Batches:
        """All of a split, in order."""
        return cls(data, part, batch=batch, steps=-(-len(part.y) // min(batch, len(part.y))), shuffled=False, **options)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        place = self.data.mean.device
        for step in range(self.steps):
            if step and time.perf_counter() > self.deadline:
                return
            self.taken += 1
            index = self._drawn() if self.shuffled else slice(step * self.batch, (step + 1) * self.batch)
            x = self.data.prepared(self.part.x[index].to(place))
            yield (_augment(x, self.generator) if self.augmented else x), self.part.y[index].to(place)

    def _drawn(self) -> Tensor:
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.part.y), generator=self.generator)
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        return index


def _augment(x: Tensor, rng: torch.Generator, margin: int = 4) -> Tensor:
    """Every image flipped or not, and shifted by up to `margin` pixels; what comes in has the mean's colour."""
    n, _, height, width = x.shape
    flips = torch.rand(n, generator=rng).to(x.device) < 0.5
    x = nn.functional.pad(torch.where(flips[:, None, None, None], x.flip(3), x), [margin] * 4)
    down, right = torch.randint(2 * margin + 1, (2, n, 1), generator=rng).to(x.device)
    rows, columns = (torch.arange(size, device=x.device) + by for size, by in ((height, down), (width, right)))
    return x[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def fit(model: nn.Module, batches: Batches, recipe: Recipe, rate: float, teacher: nn.Module | None = None) -> int:
    """Train `model` in place, one pass over `batches`; the steps taken."""
    options = {"lr": rate, "weight_decay": recipe.decay, "teacher": teacher if recipe.taught else None}
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    tnc.nn.heal(model, batches, epochs=1, seed=batches.seed, loss=loss, **options)
    return batches.taken


def pace(model: nn.Module, data: Data, recipe: Recipe, teacher: nn.Module | None = None, steps: int = 3) -> float:
    """Seconds a step takes, measured on a copy after a step to warm up."""
    model = copy.deepcopy(model)
    for count in (1, steps):
        batches = Batches(data, data.train, batch=recipe.batch, steps=count, augmented=recipe.augmented)
        start = time.perf_counter()
        fit(model, batches, recipe, recipe.rates[0], teacher)
    return (time.perf_counter() - start) / steps


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data, part: Split) -> float:
    """Share of a split whose label has the largest output."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in Batches.once(data, part))
    return right / len(part.y)
