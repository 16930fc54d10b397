"""Axes as sites of equal size: the digits of an index along an axis are the sites."""

from __future__ import annotations

from itertools import count
from math import prod

from tnc.modes import roles
from tnc.typing import Shape

__all__ = ["base", "sites"]

_MOST_PADDING = 8
"""Padding may make a weight at most this many times as large."""


def sites(shape: Shape, dimension: int) -> list[list[str]]:
    """Names of the sites of every axis. Each axis is padded to a power of `dimension`."""
    role = roles(shape)
    letter = {role.rows: "m", role.columns: "n"} | dict.fromkeys(role.stack, "s") | dict.fromkeys(role.kernel, "k")
    number = {name: count() for name in "smnk"}
    digits = [next(q for q in count() if dimension**q >= length) for length in shape]
    return [[f"{letter[axis]}{next(number[letter[axis]])}" for _ in range(q)] for axis, q in enumerate(digits)]


def base(shape: Shape, least: int, most: int) -> int:
    """The largest size of a site from `least` to `most` with at least two sites and not too much padding.

    Parameters
    ----------
    shape : tuple of int
        Shape of the weight.
    least, most : int
        Limits of the size; `least` is returned where no larger size is possible.
    """
    for size in range(min(most, max(shape)), least, -1):
        number = sum(map(len, sites(shape, size)))
        if number > 1 and size**number <= _MOST_PADDING * prod(shape):
            return size
    return least
