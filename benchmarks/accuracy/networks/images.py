"""Classifiers of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.accuracy.packages import data_folder
from benchmarks.accuracy.subject import Subject
from benchmarks.papers import data, trained
from benchmarks.papers.networks.resnet import Block
from benchmarks.papers.train import Data, split
from benchmarks.papers.trained import IMAGENET, UNIT, Moments
from tnc.demo.data import DataError, Images

__all__ = ["LEARNED_FROM", "SUBJECTS", "labelled"]

HUNDRED = Moments((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
BATCH = 250


class Open(Block):
    """A block without a ReLU at its end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x)


def hundred(depth: int) -> nn.Module:
    """A ResNet for CIFAR-100 from ``TNC_DATA``, as it was trained, which differs from the paper's.

    64 maps first, projections, ReLU at the end of a group only, 2 × 2 pixels before the last layer.
    """
    name = f"cifar_resnets/distiller_resnet{depth}_cifar100.safetensors"
    root = data.folder()
    if root is None or not (root / name).is_file():
        raise DataError(f"no trained ResNet-{depth} for CIFAR-100: set TNC_DATA to a folder with {name}.")
    made: OrderedDict[str, nn.Module] = OrderedDict()
    made["conv1"], made["bn1"], made["relu"] = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
    channels = 64
    for group, width in enumerate((16, 32, 64), 1):
        first = Open(channels, width, 1 if group == 1 else 2, "B")
        rest = (Open(width, width, 1, "B") for _ in range((depth - 8) // 6))
        made[f"layer{group}"] = nn.Sequential(first, *rest, nn.ReLU())
        channels = width
    made["pool"], made["flat"], made["linear"] = nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, 100)
    model = nn.Sequential(made)
    model.load_state_dict(load_file(root / name))
    return model.eval()


@cache
def images(name: str) -> Images:
    """A data set; the test images of CIFAR-100, which come sorted by class, in an order that does not tell it."""
    with data_folder():
        held = data.load(name)
    if name != "cifar100":
        return held
    order = np.random.default_rng(0).permutation(len(held.test_labels))
    return held._replace(test_images=held.test_images[order], test_labels=held.test_labels[order])


def prepared(pixels: np.ndarray, moments: Moments) -> Tensor:
    """Pixels ``uint8[n, h, w, 3]`` as the network takes them."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in moments)
    return (x - mean) / std


def calibration(name: str, moments: Moments, n: int) -> list[Tensor]:
    """Training images, drawn once for all: the first of 512 are those of 64."""
    held = images(name).train_images
    chosen = np.random.default_rng(0).permutation(len(held))[:n]
    return list(prepared(held[chosen], moments).contiguous().split(64))


@torch.inference_mode()
def accuracy(name: str, moments: Moments, model: nn.Module, limit: int | None = None) -> float:
    """% of the test images that are classified right."""
    held, right = images(name), 0
    pixels, labels = held.test_images[:limit], torch.from_numpy(held.test_labels[:limit]).long()
    for start in range(0, len(pixels), BATCH):
        x = prepared(pixels[start : start + BATCH], moments).contiguous(memory_format=torch.channels_last)
        right += int((model(x).argmax(1) == labels[start : start + BATCH]).sum())
    return 100 * right / len(pixels)


def found(make: Callable[[], nn.Module]) -> nn.Module:
    with data_folder():
        return make()


def classifier(name: str, make: Callable[[], nn.Module], weights: str, dense: float) -> Subject:
    of, moments = LEARNED_FROM[name]
    return Subject(
        name=name,
        load=partial(found, make),
        calibration=partial(calibration, of, moments),
        score=partial(accuracy, of, moments),
        weights=weights,
        unit="accuracy, %",
        lessons=4096,
        dense=dense,
    )


def labelled(name: str) -> Data:
    """The labelled images of a classifier by its name, with 10 % of the training images held out.

    Raises
    ------
    DataError
        The network is no classifier of images.
    """
    if name not in LEARNED_FROM:
        raise DataError(f"{name} has no labelled images; these have: {', '.join(LEARNED_FROM)}")
    of, moments = LEARNED_FROM[name]
    return split(images(of), mean=moments.mean, std=moments.std)


RESIDUAL = "layer*.conv?.weight"
VGG = "features.conv1_2.weight features.conv[2-5]_?.weight"
RESNETS = {20: 91.73, 32: 92.63, 56: 93.39}
HUNDREDS = {20: 69.69, 32: 71.70}
LEARNED_FROM = {
    **{f"resnet{depth}": ("cifar10", IMAGENET) for depth in RESNETS},
    **dict.fromkeys(("resnet56-b", "vgg16-bn"), ("cifar10", UNIT)),
    **{f"resnet{depth}-cifar100": ("cifar100", HUNDRED) for depth in HUNDREDS},
}
"""By the name of a network its data set, and the moments that standardize images for it."""

SUBJECTS = (
    *(
        classifier(f"resnet{depth}", partial(trained.resnet, depth), RESIDUAL, dense)
        for depth, dense in RESNETS.items()
    ),
    classifier("resnet56-b", trained.resnet56_b, RESIDUAL, 93.20),
    classifier("vgg16-bn", trained.vgg16_bn, VGG, 92.25),
    *(
        classifier(f"resnet{depth}-cifar100", partial(hundred, depth), RESIDUAL, dense)
        for depth, dense in HUNDREDS.items()
    ),
)
