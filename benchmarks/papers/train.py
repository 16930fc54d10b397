"""Recipes, and data in memory: splits, augmentation and scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tnc.demo.data import Images

__all__ = [
    *("LEAST", "START_TRIAL", "TRIAL"),
    *("Data", "Recipe", "Split", "accuracy", "augment", "device", "loss", "once", "split"),
]


class Split(NamedTuple):
    """Inputs ``uint8[n, c, h, w]``, or features ``float32[n, d]``, and labels ``int64[n]``."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """The splits to fit weights on, to choose on and to report; mean and standard deviation of the input channels."""

    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor

    def prepared(self, x: Tensor) -> Tensor:
        """Inputs as the network takes them: bytes become standardized floats, features stay."""
        return x.to(self.mean.device, torch.float32).sub_(self.mean).div_(self.std) if x.dtype == torch.uint8 else x


TRIAL = 0.2
"""Length of a trial of a learning rate, as a share of the steps."""
START_TRIAL = 0.05
"""Length of a trial of a random start, as a share of the steps."""
LEAST = 200
"""The smallest number of steps of a trial.

In the first few hundred steps, learning rates under which random gates hardly move look best.
"""


@dataclass(frozen=True)
class Recipe:
    """A schedule of `tnc.nn.heal`. Its learning rates mean the same to factorized and to dense weights.

    Attributes
    ----------
    epochs : float
        Passes over the training split in the full schedule.
    batch : int
        Examples per step.
    rates : tuple of float
        Learning rates. If there are several, every row uses the one that is best on the validation split in a trial.
    decay : float
        Weight decay.
    augmented : bool
        Whether training images are flipped and shifted at random.
    taught : bool
        Whether nine tenths of the loss are the distillation of the trained dense network, as `tnc.nn.heal` does it.
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

    def trial(self, steps: int, share: float = TRIAL) -> int:
        """Steps of a trial of a learning rate or, with its share, of a start, in a schedule of `steps` steps."""
        return min(steps, max(round(share * steps), LEAST))

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
    """The device to train on: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split(images: Images, held_out: float = 0.1, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> Data:
    """Split images; the last ones of the training images become the validation split.

    Parameters
    ----------
    images : Images
    held_out : float
        Share of the training images that become the validation split.
    mean, std : tuple of float
        Mean and standard deviation of each channel, for pixels from 0 to 1, if a trained network fixes them. If they
        are empty, those of the other training images are used.
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


def once(data: Data, part: Split, batch: int = 500, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Prepared batches of all examples of a split in order; with a seed, images are flipped and shifted at random."""
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    for x, y in zip(part.x.split(batch), part.y.split(batch), strict=True):
        x = data.prepared(x.to(data.mean.device))
        yield (x if rng is None else augment(x, rng)), y.to(x.device)


def augment(x: Tensor, rng: torch.Generator, margin: int = 4) -> Tensor:
    """Flip every image ``[n, c, h, w]`` or not, and shift it by up to `margin` pixels.

    Pixels that enter at the border are 0, which is the mean of standardized images.
    """
    n, _, height, width = x.shape
    flips = torch.rand(n, generator=rng).to(x.device) < 0.5
    x = nn.functional.pad(torch.where(flips[:, None, None, None], x.flip(3), x), [margin] * 4)
    down, right = torch.randint(2 * margin + 1, (2, n, 1), generator=rng).to(x.device)
    rows, columns = (torch.arange(size, device=x.device) + by for size, by in ((height, down), (width, right)))
    return x[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data, part: Split) -> float:
    """Share of the examples of a split for which the output of the label is the largest."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in once(data, part))
    return right / len(part.y)


@torch.inference_mode()
def loss(model: nn.Module, data: Data, part: Split) -> float:
    """Mean cross-entropy over the examples of a split."""
    model.eval()
    total = sum(float(nn.functional.cross_entropy(model(x), y, reduction="sum")) for x, y in once(data, part))
    return total / len(part.y)
