"""Axes as sites of one size: an index along an axis is a number, and its digits are the sites."""

from __future__ import annotations

from itertools import count
from math import prod

from tnc.modes import roles
from tnc.typing import Shape

__all__ = ["base", "sites"]

_PADDED = 8


def sites(shape: Shape, dimension: int) -> list[list[str]]:
    """Names of the sites of every axis: as many as its length has digits, so that each axis is padded to a power."""
    role = roles(shape)
    letter = {role.rows: "m", role.columns: "n"} | dict.fromkeys(role.stack, "s") | dict.fromkeys(role.kernel, "k")
    number = {name: count() for name in "smnk"}
    digits = [next(q for q in count() if dimension**q >= length) for length in shape]
    return [[f"{letter[axis]}{next(number[letter[axis]])}" for _ in range(q)] for axis, q in enumerate(digits)]


def base(shape: Shape, least: int, most: int) -> int:
    """The largest size of a site up to `most` that leaves two sites at least and pads to 8 times the weight at most."""
    for size in range(min(most, max(shape)), least, -1):
        number = sum(map(len, sites(shape, size)))
        if number > 1 and size**number <= _PADDED * prod(shape):
            return size
    return least
