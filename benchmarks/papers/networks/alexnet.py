"""AlexNet and ZFNet for 32 × 32 images.

The ADTN paper names them without their shapes at this size. Ours keep the widths of the originals and the relation
between the two (ZFNet has the smaller first kernel and stride, and strides in its second layer); strides are such that
256 maps of 2 × 2 reach the head: fc1 has 2^22 weights, fc2 2^24.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from benchmarks.papers.networks.initial import he_normal
from benchmarks.papers.networks.vgg import head

__all__ = ["alexnet", "zfnet"]


class Conv(NamedTuple):
    """Maps, kernel and stride of a convolution, and whether pooling follows."""

    width: int
    kernel: int
    stride: int = 1
    pool: bool = False


LATER = (Conv(384, 3), Conv(384, 3), Conv(256, 3, pool=True))
ALEXNET = (Conv(96, 5, 2, pool=True), Conv(256, 5, pool=True), *LATER)
ZFNET = (Conv(96, 3, pool=True), Conv(256, 5, 2, pool=True), *LATER)


def alexnet(classes: int, in_channels: int) -> nn.Sequential:
    """Five convolutions, the first 5 × 5 with stride 2, and a head 1024 → 4096 → 4096 → classes."""
    return _network(ALEXNET, classes, in_channels)


def zfnet(classes: int, in_channels: int) -> nn.Sequential:
    """As `alexnet`, the first convolution 3 × 3 with stride 1 and the second with stride 2."""
    return _network(ZFNET, classes, in_channels)


def _network(layers: Sequence[Conv], classes: int, channels: int) -> nn.Sequential:
    made: OrderedDict[str, nn.Module] = OrderedDict()
    for at, (width, kernel, stride, pool) in enumerate(layers, 1):
        made[f"conv{at}"] = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
        made[f"relu{at}"], channels = nn.ReLU(), width
        if pool:  # overlapping, as in the originals
            made[f"pool{at}"] = nn.MaxPool2d(3, 2, padding=1)
    features = he_normal(nn.Sequential(made))
    return nn.Sequential(
        OrderedDict(features=features, flat=nn.Flatten(), classifier=head(classes, 4 * channels, dropout=0.5))
    )
