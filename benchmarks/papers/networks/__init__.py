"""The papers' networks by name, in the papers' own shapes: ``build("vgg16")``.

Where a paper replaces a convolution by "a dense map of the flattened feature map", ``vgg16-map``, ``vgg19-map`` and
``wrn-20-4-map`` have a `MapConv` in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from benchmarks.papers.networks.alexnet import alexnet, zfnet
from benchmarks.papers.networks.densenet import densenet
from benchmarks.papers.networks.mapconv import ChannelsLastFlatten, MapConv
from benchmarks.papers.networks.resnet import resnet
from benchmarks.papers.networks.small import fc2, lenet5
from benchmarks.papers.networks.vgg import head, vgg16, vgg16_bn, vgg16_standard, vgg19
from benchmarks.papers.networks.wrn import wrn
from tnc.errors import closest, listed

__all__ = ["SPECS", "ChannelsLastFlatten", "MapConv", "Spec", "build", "head", "resnet"]


class Spec(NamedTuple):
    """How a network is made, as ``make(classes, in_channels, **options)``, and the images it takes."""

    make: Callable[..., nn.Module]
    channels: int
    size: int


SPECS = {
    "fc2": Spec(fc2, 1, 28),
    "lenet5": Spec(lenet5, 1, 28),
    "alexnet": Spec(alexnet, 3, 32),
    "zfnet": Spec(zfnet, 3, 32),
    "vgg16": Spec(vgg16, 3, 32),
    "vgg16-map": Spec(partial(vgg16, maps=True), 3, 32),
    "vgg16-adtn": Spec(vgg16_standard, 3, 32),
    "vgg16-bn": Spec(vgg16_bn, 3, 32),
    "vgg19": Spec(vgg19, 3, 32),
    "vgg19-map": Spec(partial(vgg19, maps=True), 3, 32),
    "resnet20": Spec(partial(resnet, 20), 3, 32),
    "resnet32": Spec(partial(resnet, 32), 3, 32),
    "resnet56": Spec(partial(resnet, 56), 3, 32),
    "wrn-28-10": Spec(partial(wrn, blocks=4, widen=10), 3, 32),
    "wrn-16-4": Spec(partial(wrn, blocks=2, widen=4), 3, 32),
    "wrn-20-4": Spec(partial(wrn, blocks=3, widen=4), 3, 32),
    "wrn-20-4-map": Spec(partial(wrn, blocks=3, widen=4, maps=True), 3, 32),
    "densenet": Spec(densenet, 3, 32),
}


def build(name: str, classes: int = 10, in_channels: int | None = None, **options: Any) -> nn.Module:
    """The network `name`, freshly initialized; it maps ``float[n, in_channels, size, size]`` to ``float[n, classes]``.

    Parameters
    ----------
    name : str
        A key of `SPECS`.
    in_channels : int, optional
        1 for ``fc2`` and ``lenet5``, which take 28 × 28 images; 3 for the others, which take 32 × 32.
    **options
        Of the network's function: ``linear=`` is what makes the dense maps of ``*-map``, for instance
        ``functools.partial(tnc.nn.Linear, decomposition="mpo", rank=4)``.

    Raises
    ------
    ValueError
        There is no such network.
    """
    if name not in SPECS:
        raise ValueError(f"no network {name!r}.{closest(name, SPECS)} There are: {listed(SPECS, len(SPECS))}.")
    spec = SPECS[name]
    return spec.make(classes, spec.channels if in_channels is None else in_channels, **options)
