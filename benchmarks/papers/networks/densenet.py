"""DenseNet for 32 × 32 images: three blocks in which every layer sees the maps of all layers before it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from benchmarks.papers.networks.initial import he_normal

__all__ = ["densenet"]


class Activated(nn.Sequential):
    """Batch normalization, ReLU, convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        super().__init__(OrderedDict(bn=nn.BatchNorm2d(inputs), relu=nn.ReLU(), conv=conv))


class Growing(Activated):
    """Adds its maps to those it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, super().forward(x)), dim=1)


def densenet(classes: int, in_channels: int, *, growth: int = 12, layers: int = 12, first: int = 16) -> nn.Sequential:
    """DenseNet(12, 12): 40 layers, 448 maps at the end, of which the MPO paper replaces the layer 448 → 10.

    No bottlenecks; the 1 × 1 convolutions between blocks keep the number of maps.

    References
    ----------
    Huang et al., "Densely connected convolutional networks", arXiv 1608.06993, section 3.
    """
    made: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(in_channels, first, 3, padding=1, bias=False))
    channels = first
    for block in (1, 2, 3):
        made[f"block{block}"] = nn.Sequential(*(Growing(channels + at * growth, growth, 3) for at in range(layers)))
        channels += layers * growth
        if block < 3:
            made[f"transition{block}"], made[f"pool{block}"] = Activated(channels, channels, 1), nn.AvgPool2d(2)
    made["bn"], made["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
    made["pool"], made["flat"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    made["linear"] = nn.Linear(channels, classes)
    return he_normal(nn.Sequential(made))
