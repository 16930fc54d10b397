"""Wide ResNets for 32 × 32 images: three groups of pre-activated blocks with 16k, 32k and 64k maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.papers.networks.initial import he_normal
from benchmarks.papers.networks.mapconv import MapConv

__all__ = ["wrn"]

ABSENT = partial(nn.Linear, device="meta")
"""A layer with a shape and no values."""


class WideBlock(nn.Module):
    """``x + conv(relu(bn(conv(relu(bn(x))))))``; where maps change their number x is projected, after its ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1: nn.Module = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2: nn.Module = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        inner = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


def wrn(
    classes: int,
    in_channels: int,
    *,
    blocks: int,
    widen: int,
    maps: bool = False,
    linear: Callable[..., nn.Module] = ABSENT,
) -> nn.Sequential:
    """The wide ResNet with `blocks` blocks a group: 4 and k = 10 for WRN-28-10, 3 and k = 4 for the MPO paper's.

    Layers are ``group<1-3>.<block>.conv<1-2>`` and ``linear``. The MPO paper calls its network 20 layers deep (the
    projections are not counted) and replaces the last block's convolutions, 1,179,648 weights, by two maps of 8 × 8
    images with 64k channels, and the linear layer.

    Parameters
    ----------
    maps : bool
        Whether the last block holds those `MapConv`. Dense ones of 16384 × 16384 take 1 GB each: they are on the
        meta device until `tnc.nn.tensorize` gives them cores, or `linear` makes factorized ones at once.

    References
    ----------
    Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146; Gao et al., arXiv 1904.06194.
    """
    made: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False))
    channels = 16
    for group, width in enumerate((16 * widen, 32 * widen, 64 * widen), 1):
        first = WideBlock(channels, width, stride=1 if group == 1 else 2)
        made[f"group{group}"] = nn.Sequential(first, *(WideBlock(width, width, 1) for _ in range(blocks - 1)))
        channels = width
    if maps:
        last, shape = made["group3"][-1], (8, 8, channels)  # type: ignore[index]
        last.conv1, last.conv2 = (MapConv(shape, shape, linear) for _ in range(2))
    made["bn"], made["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
    made["pool"], made["flat"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    made["linear"] = nn.Linear(channels, classes)
    return he_normal(nn.Sequential(made))
