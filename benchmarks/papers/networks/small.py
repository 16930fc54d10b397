"""FC2 and LeNet-5 for 28 × 28 images, in the MPO paper's shapes."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from benchmarks.papers.networks.mapconv import ChannelsLastFlatten

__all__ = ["fc2", "lenet5"]


def fc2(classes: int, in_channels: int, hidden: int = 256) -> nn.Module:
    """784 → 256 → 10 with a ReLU between: weights of 203,264 parameters."""
    return nn.Sequential(
        OrderedDict(
            flat=ChannelsLastFlatten(),
            fc1=nn.Linear(784 * in_channels, hidden),
            relu=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )


def lenet5(classes: int, in_channels: int) -> nn.Module:
    """Two convolutions, then 400 → 120 → 84 → 10: three replaced layers with 58,920 weights.

    The first of them, fc1, is the convolution C5: its 5 × 5 kernel covers the whole 5 × 5 × 16 map, so that it is
    a linear layer of the map flattened channels-last.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 6, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flat=ChannelsLastFlatten(),
            fc1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )
