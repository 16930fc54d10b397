"""VGG-16 and VGG-19 for 32 × 32 images: the MPO paper's, the ADTN paper's, and the one that comes trained.

Convolutions are called ``features.conv<block>_<number>``, each with batch normalization and ReLU after it (the MPO
paper's code has them before it, which changes no weight that is counted); the head is ``classifier.fc1`` to ``fc3``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from torch import nn

from benchmarks.papers.networks.initial import he_normal
from benchmarks.papers.networks.mapconv import MapConv

__all__ = ["head", "vgg16", "vgg16_bn", "vgg16_standard", "vgg19"]

WIDTHS = (64, 128, 256, 512, 512)
LAYERS_16 = (2, 2, 3, 3, 3)
LAYERS_19 = (2, 2, 4, 4, 4)


def vgg16(
    classes: int, in_channels: int, *, maps: bool = False, linear: Callable[..., nn.Module] = nn.Linear
) -> nn.Sequential:
    """The MPO paper's VGG-16: 28,907,200 weights; conv3_3, conv4_3 and conv5_3 are 1 × 1, as in its code.

    Replaced are conv5_1, conv5_2 (with `maps` as `MapConv` of 2048 → 2048 made by `linear`) and the three layers
    of the head: 23,633,920 weights.
    """
    replaced = ("5_1", "5_2") if maps else ()
    features = _features(LAYERS_16, in_channels, pointwise=("3_3", "4_3", "5_3"), maps=replaced, linear=linear)
    return _joined(features, head(classes))


def vgg19(
    classes: int, in_channels: int, *, maps: bool = False, linear: Callable[..., nn.Module] = nn.Linear
) -> nn.Sequential:
    """The MPO paper's VGG-19, all kernels 3 × 3; replaced are conv5_3, conv5_4 and the head."""
    features = _features(LAYERS_19, in_channels, maps=("5_3", "5_4") if maps else (), linear=linear)
    return _joined(features, head(classes))


def vgg16_standard(classes: int, in_channels: int) -> nn.Sequential:
    """VGG-16 with thirteen 3 × 3 convolutions; the ADTN paper replaces fc1 (2^21 weights) and fc2 (2^24)."""
    return _joined(_features(LAYERS_16, in_channels), head(classes))


def vgg16_bn(classes: int, in_channels: int) -> nn.Sequential:
    """The shape of the trained network: convolutions with biases, a head of one hidden layer of 512."""
    small = OrderedDict(
        fc1=nn.Linear(512, 512), bn=nn.BatchNorm1d(512), relu=nn.ReLU(), drop=nn.Dropout(), fc2=nn.Linear(512, classes)
    )
    return _joined(_features(LAYERS_16, in_channels, bias=True), nn.Sequential(small))


def head(classes: int, inputs: int = 512, width: int = 4096, dropout: float = 0.2) -> nn.Sequential:
    """``inputs → width → width → classes`` with ReLU and dropout between."""
    return he_normal(
        nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(inputs, width),
                relu1=nn.ReLU(),
                drop1=nn.Dropout(dropout),
                fc2=nn.Linear(width, width),
                relu2=nn.ReLU(),
                drop2=nn.Dropout(dropout),
                fc3=nn.Linear(width, classes),
            )
        )
    )


def _features(
    layers: Sequence[int],
    channels: int,
    *,
    pointwise: Collection[str] = (),
    maps: Collection[str] = (),
    linear: Callable[..., nn.Module] = nn.Linear,
    bias: bool = False,
) -> nn.Sequential:
    """Five blocks of convolutions, each halving the map: 32 × 32 to 1 × 1."""
    made: OrderedDict[str, nn.Module] = OrderedDict()
    size = 32
    for block, (width, count) in enumerate(zip(WIDTHS, layers, strict=True), 1):
        for at in (f"{block}_{number}" for number in range(1, count + 1)):
            kernel = 1 if at in pointwise else 3
            made[f"conv{at}"] = (
                MapConv((size, size, channels), (size, size, width), linear)
                if at in maps
                else nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=bias)
            )
            made[f"bn{at}"], made[f"relu{at}"], channels = nn.BatchNorm2d(width), nn.ReLU(), width
        made[f"pool{block}"], size = nn.MaxPool2d(2), size // 2
    return he_normal(nn.Sequential(made))


def _joined(features: nn.Module, classifier: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(features=features, flat=nn.Flatten(), classifier=classifier))
