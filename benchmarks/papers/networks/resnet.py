"""ResNets for 32 × 32 images: 6n + 2 layers in three groups of n blocks with 16, 32 and 64 maps."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.papers.networks.initial import he_normal

__all__ = ["resnet"]

WIDTHS = (16, 32, 64)


class Subsample(nn.Module):
    """Shortcut A, without parameters: every `stride`-th pixel, new maps of zeros on both sides."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        sides = (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], sides)


class Projection(nn.Sequential):
    """Shortcut B: a 1 × 1 convolution and batch normalization."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """``relu(x + bn(conv(relu(bn(conv(x))))))``."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            projected = shortcut == "B"
            self.shortcut = Projection(inputs, outputs, stride) if projected else Subsample(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet(depth: int, classes: int = 10, in_channels: int = 3, *, shortcut: Literal["A", "B"] = "A") -> nn.Sequential:
    """The ResNet of `depth` layers: 269,722 parameters at 20, 464,154 at 32, 853,018 at 56.

    Parameters
    ----------
    depth : int
        6n + 2.
    shortcut : {"A", "B"}
        Where maps change their number: zeros (the paper's choice for CIFAR) or a projection.

    References
    ----------
    He et al., "Deep residual learning for image recognition", arXiv 1512.03385, section 4.2.
    """
    if (depth - 2) % 6:
        raise ValueError(f"a ResNet for 32 × 32 images has 6n + 2 layers (20, 32, 44, 56, 110), not {depth}.")
    channels = WIDTHS[0]
    made: OrderedDict[str, nn.Module] = OrderedDict()
    made["conv1"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    made["bn1"], made["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
    for group, width in enumerate(WIDTHS, 1):
        first = Block(channels, width, stride=1 if group == 1 else 2, shortcut=shortcut)
        rest = (Block(width, width, 1, shortcut) for _ in range((depth - 2) // 6 - 1))
        made[f"layer{group}"], channels = nn.Sequential(first, *rest), width
    made["pool"], made["flat"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    made["linear"] = nn.Linear(channels, classes)
    return he_normal(nn.Sequential(made))
