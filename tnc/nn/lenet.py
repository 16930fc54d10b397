"""LeNet-5, and the little that is needed to train, score and time it: the demo's laboratory."""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tnc.data import Images

__all__ = [
    "BATCH",
    "Pairs",
    "Splits",
    "accuracy",
    "lenet5",
    "milliseconds",
    "predictions",
    "silent",
    "splits",
    "train",
]

Progress = Callable[..., Iterable[Any]]
"""``progress(iterable, total=..., description=...)`` yields what it is given, and shows how far it is."""


def silent(iterable: Iterable[Any], *, total: int | None = None, description: str = "") -> Iterable[Any]:
    """A `Progress` that shows nothing."""
    return iterable


BATCH = 128
"""Images per step of training, and per forward pass that is timed."""


class Pairs(NamedTuple):
    """Images ``float[n, 1, 28, 28]``, standardized, with their labels ``int64[n]``."""

    x: Tensor
    y: Tensor


class Splits(NamedTuple):
    """What weights are fitted on, what models are chosen on, and what is reported."""

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
    # Channels last: pooling is three times faster on a CPU.
    return nn.Sequential(OrderedDict(layers)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def splits(images: Images, held_out: float = 1 / 12) -> Splits:
    """Standardize `images`; the last `held_out` of the training images become the validation split."""
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
    seed: int = 0,
    progress: Progress | None = None,
    description: str = "training",
) -> int:
    """Train `model` in place with AdamW for `steps` batches or `seconds`, whichever ends first.

    The learning rate rises once and falls to 0, with the share of the steps or of the time that is used
    up, whichever is larger: where time is not short, the result depends on the seed alone.

    Returns
    -------
    int
        Steps taken.
    """
    order = _batches(len(pairs.y), batch, steps, np.random.default_rng(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    started, taken = time.perf_counter(), 0
    model.train()
    for index in (progress or silent)(order, total=steps, description=description):
        used = max(taken / steps, (time.perf_counter() - started) / max(seconds, 1e-9))
        if used >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * _one_cycle(used)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pairs.x[index]), pairs.y[index]).backward()
        optimizer.step()
        taken += 1
    model.eval()
    return taken


def _one_cycle(done: float, peak: float = 0.25) -> float:
    """Share of the peak rate: a quarter of the way up along a cosine, then down; not 0 at the first step."""
    done = max(done, 0.01)
    phase = done / peak if done < peak else 1 + (done - peak) / (1 - peak)
    return (1 - math.cos(math.pi * phase)) / 2


def _batches(n: int, batch: int, steps: int, rng: np.random.Generator) -> Iterable[Tensor]:
    """Indices of `steps` batches: every image once per epoch, in a fresh order each time."""
    batch = min(batch, n)
    per_epoch = n // batch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.from_numpy(rng.permutation(n))
        start = step % per_epoch * batch
        yield order[start : start + batch]


def accuracy(model: nn.Module, pairs: Pairs) -> float:
    """Share of `pairs` whose label has the largest output."""
    return float((predictions(model, pairs.x) == pairs.y).double().mean())


@torch.inference_mode()
def predictions(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """The label with the largest output, for every image of `x`."""
    model.eval()
    return torch.cat([model(part).argmax(1) for part in x.split(batch)])


@torch.inference_mode()
def milliseconds(model: nn.Module, x: Tensor, repeats: int = 15) -> float:
    """Median time of one forward pass on the batch `x`, in milliseconds."""
    model.eval()
    for _ in range(3):
        model(x)
    laps = []
    for _ in range(repeats):
        started = time.perf_counter()
        model(x)
        laps.append(time.perf_counter() - started)
    return 1e3 * statistics.median(laps)
