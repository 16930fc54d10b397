"""Costed plans of convolutions: some cores act on the input, some make the kernel, the rest act on the result.

Every split of the cores is priced roughly, by the convolution that is left and by arithmetic; those that look best are
planned, and priced by `tnc.cost`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from tnc.cost import Device, convolution, lanes, piece, seconds
from tnc.network import Network
from tnc.planner import multiplications, sequential
from tnc.plans import Indices, Plan, plan

__all__ = ["Conv", "Extent", "conv", "planned"]

_FEW = 3
"""Splits that are planned, of those that look best."""

Split = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Term = tuple[tuple[Indices, ...], Indices]
"""Operands of a contraction, and its result."""
Stage = tuple[tuple[Indices, ...], Indices, dict[str, int]]
"""The same with sizes."""


class Extent(NamedTuple):
    """How much there is to convolve.

    Attributes
    ----------
    batch, positions : int
        Images, and places of the kernel in one.
    stretch : int
        How many times more pixels there are where the kernel does not stand at each: before it slides, or after if
        transposed.
    """

    batch: int
    positions: int
    stretch: int = 1


class Conv(NamedTuple):
    """A convolution through the cores: some act on the input, some make the kernel, the rest act on the result.

    Attributes
    ----------
    before, middle, after : Plan
        Input with `early` cores; the cores of the kernel; the convolved map with `late` cores.
    early, inner, late : tuple of int
        Which cores go where.
    folded, groups : int
        Channels that ride along as batch; groups of the middle convolution.
    unfolded : tuple of int
        Sizes of the result's channel indices: folded ones, groups, channels out.
    channels : tuple of int
        Channels of the middle: out of it per group, into it per group.
    direct : bool
        Whether the convolved map has the result's channels, in their order.
    places : int
        Places of the kernel, of a piece of the images, that are best worked on at a time.
    seconds : float
    """

    before: Plan
    middle: Plan
    after: Plan
    early: tuple[int, ...]
    inner: tuple[int, ...]
    late: tuple[int, ...]
    folded: int
    groups: int
    unfolded: tuple[int, ...]
    channels: tuple[int, int]
    direct: bool
    places: int
    seconds: float


class _Parts(NamedTuple):
    """A split of the cores as three contractions with a convolution between."""

    before: Term
    middle: Term
    after: Term
    folded: Indices
    groups: Indices
    out: Indices
    into: Indices


@lru_cache(maxsize=4096)
def conv(network: Network, extent: Extent, device: Device, training: bool, transposed: bool) -> Conv:
    """The cheapest `Conv`.

    Parameters
    ----------
    transposed : bool
        Whether the weight's first axis is the input's, as in a transposed convolution.
    """
    kernel = {i for axis in network.axes[2:] for i in axis}
    fixed = [k for k, core in enumerate(network.operands) if kernel & set(core)]
    others = [k for k in range(len(network.operands)) if k not in fixed]
    found: list[tuple[float, Split]] = []
    for places in product(range(3), repeat=len(others)):
        early, inner, late = (tuple(k for k, p in zip(others, places, strict=True) if p == side) for side in range(3))
        split = early, tuple(sorted((*fixed, *inner))), late
        found.append((_rough(network, split, extent, device, training, transposed), split))
    best = sorted(found)[:_FEW]
    made = [planned(network, split, extent, device, training, transposed) for _, split in best]
    return min(made, key=lambda way: way.seconds)


@lru_cache(maxsize=4096)
def _parts(network: Network, split: Split, transposed: bool) -> _Parts:
    early, inner, late = (tuple(network.operands[k] for k in part) for part in split)
    source, target = network.axes[:2][::-1] if not transposed else network.axes[:2]
    kernel = tuple(i for axis in network.axes[2:] for i in axis)
    outside = {i for core in late for i in core} | set(target)
    here = {i for core in inner for i in core}
    up = [i for i in dict.fromkeys([*source, *(i for core in early for i in core)]) if i in outside | here]
    folded = tuple(i for i in up if i not in here)
    groups = tuple(i for i in up if i in here and i in outside)
    into = tuple(i for i in up if i in here and i not in outside)
    out = tuple(dict.fromkeys(i for core in inner for i in core if i not in up and i not in kernel and i in outside))
    before = (("*", *source, "."), *early), ("*", *folded, *groups, *into, ".")
    body = (*groups, *into, *out, *kernel) if transposed else (*groups, *out, *into, *kernel)
    after = (("*", *folded, *groups, *out, "."), *late), ("*", *target, ".")
    return _Parts(before, (inner, body), after, folded, groups, out, into)


def _stages(
    network: Network, split: Split, extent: Extent, device: Device, training: bool, transposed: bool
) -> tuple[list[tuple[float, Stage]], float, int]:
    """What is contracted before, within and after the convolution of a piece, and how often; the time of all else.

    The last is `Conv.places`.
    """
    parts, size = _parts(network, split, transposed), network.sizes
    count, m, n, folded = (prod(size[i] for i in part) for part in (parts.groups, parts.out, parts.into, parts.folded))
    before, after = (extent.stretch, 1)[:: -1 if transposed else 1]
    entries = folded * max(before * count * n, after * lanes(count * m))
    places = max(1, piece(device) // (4 * entries))
    batch = min(extent.batch, max(1, places // extent.positions))
    pixels = (before * extent.positions, 1, after * extent.positions)
    columns, taps = batch * extent.positions * folded, prod(network.shape[2:])
    total = convolution(count, m, n, taps, columns, device, training=training)
    if training and split[2]:  # the backward pass of the last cores needs the convolved map again
        total += convolution(count, m, n, taps, columns, device)
    if parts.after[0] != (parts.after[1],):  # the bias is added afterwards, in a pass of its own
        total += 4 * batch * pixels[2] * network.shape[1 if transposed else 0] / device.bytes
    pieces = extent.batch / batch
    terms = zip((pieces, 1.0, pieces), parts[:3], pixels, strict=True)
    return [(n, (*term, {"*": batch, ".": p, **size})) for n, term, p in terms], total * pieces, places


def _rough(network: Network, split: Split, extent: Extent, device: Device, training: bool, transposed: bool) -> float:
    """A price from below: the convolution, multiplications in the better of two orders, results moved, and calls."""
    stages, total, _ = _stages(network, split, extent, device, training, transposed)
    for times, (operands, output, size) in stages:
        if (n := len(operands)) > 1:
            work = min(multiplications(operands, output, size, path) for path in sequential(n)) / device.flops
            moved = 4 * prod(size[i] for i in output) / device.bytes
            total += times * (2 * work + moved + device.call * (n - 1)) * (3 if training else 1)
    return total


def planned(network: Network, split: Split, extent: Extent, device: Device, training: bool, transposed: bool) -> Conv:
    """The plans of one split of the cores, and their price."""
    stages, total, places = _stages(network, split, extent, device, training, transposed)
    plans = []
    for times, (operands, output, size) in stages:
        used = {i for core in (*operands, output) for i in core}
        plans.append(plan(operands, output, tuple((i, n) for i, n in size.items() if i in used)))
        total += times * seconds(plans[-1], device, training=training)
    before, middle, after = plans
    total += stages[0][0] * seconds(before, device) if training else 0.0  # likewise the map that is convolved
    parts, sizes = _parts(network, split, transposed), network.sizes
    folded, groups, out, into = (prod(sizes[i] for i in part) for part in parts[3:])
    unfolded = tuple(sizes[i] for i in (*parts.folded, *parts.groups, *parts.out))
    direct = folded == 1 and parts.after[0] == (parts.after[1],)
    return Conv(before, middle, after, *split, folded, groups, unfolded, (out, into), direct, places, total)
