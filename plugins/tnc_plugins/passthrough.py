"""From a classical format to its semi-tensor form: part of a mode passes by its core, straight to the bond's other end."""

from __future__ import annotations

from dataclasses import replace
from math import lcm, prod
from typing import TypeAlias, TypeVar

from tnc import Decomposition, Network
from tnc.errors import RankError, WeightError
from tnc.modes import balanced, roles
from tnc.typing import Shape

__all__ = ["Ratio", "divide", "divisible", "step"]

Ratio: TypeAlias = int | tuple[int, ...]
"""One ratio ``t`` for every bond that meets a row or column mode, or one per bond."""

Classical = TypeVar("Classical", bound=Decomposition)


def step(t: Ratio) -> int:
    """The smallest rank that every ratio divides.

    Raises
    ------
    RankError
        A ratio is not a whole number of at least 1.
    """
    ratios = t if isinstance(t, tuple) else (t,)
    if not ratios or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in ratios):
        raise RankError(f"t={t!r}: whole numbers of at least 1 are needed, one or one per bond")
    return lcm(*ratios)


def _ratios(network: Network, t: Ratio, end: int) -> dict[str, tuple[str, int]]:
    """Mode and ratio of the bonds to divide; those that end at a kernel, a stack or a Tucker core are not."""
    modes = {core[end]: mode for core in network.operands for mode in core if mode[0] in "mn"}
    given = dict(zip(network.bonds, t, strict=False)) if isinstance(t, tuple) else dict.fromkeys(network.bonds, t)
    if isinstance(t, tuple) and (len(t) != len(given) or any(given[b] > 1 for b in given if b not in modes)):
        able = tuple(b for b in given if b in modes)
        raise RankError(f"t={t}: one ratio for each of the bonds {network.bonds} is needed, 1 except at {able}")
    return {bond: (mode, given[bond]) for bond, mode in modes.items() if bond in given}


def divisible(classical: Classical, shape: Shape, t: Ratio, end: int) -> Classical:
    """The same format with mode factors that the ratios divide: its own ones, or multiples that may overshoot an axis.

    Raises
    ------
    WeightError
        A ratio does not divide a factor that was given.
    """
    plain, _ = classical.network(shape, 1), step(t)
    ratio = dict(_ratios(plain, t, end).values())
    for name, letter, axis in zip(("rows", "columns"), "mn", roles(shape)[1:3], strict=True):
        by = {mode: ratio.get(mode, 1) for mode in plain.outer if mode[0] == letter}
        if wrong := {mode: plain.sizes[mode] for mode, n in by.items() if plain.sizes[mode] % n}:
            if getattr(classical, name):
                raise WeightError(f"t={t} does not divide the factors {wrong} of {name}={getattr(classical, name)}")
            least = balanced(-(-shape[axis] // prod(by.values())), len(by))
            classical = replace(classical, **{name: tuple(n * m for n, m in zip(least, by.values(), strict=True))})
    return classical


def divide(network: Network, t: Ratio, end: int) -> Network:
    """Replace matrix products by semi-tensor products ``G (H ⊗ I_t)`` at the bonds of a network.

    `H` has the mode ``I = (i s)`` and the bond ``R = (r s)``; their common fast index `s` of size `t` leaves it
    and stands in `G` and on the right: ``H`` shrinks to ``(R/t, I/t)``, ``G`` keeps its size. `end` says where the
    bond stands in the cores `H`: first in a chain (0), last in a Tucker factor (-1).

    Raises
    ------
    RankError
        A ratio does not divide its bond's rank, or stands at a kernel or a stack.
    """
    sizes, cores, axes = dict(network.sizes), [[*core] for core in network.operands], [[*axis] for axis in network.axes]
    for bond, (mode, ratio) in _ratios(network, t, end).items():
        if ratio > 1:
            if sizes[bond] % ratio:
                raise RankError(
                    f"rank {sizes[bond]} of bond {bond!r} is not a multiple of t={ratio} ({network.pattern})"
                )
            sizes |= {bond: sizes[bond] // ratio, mode: sizes[mode] // ratio, (wire := f"t{bond[1:]}"): ratio}
            for group, after in [(g, bond) for g in cores if mode not in g] + [(g, mode) for g in axes]:
                if after in group:
                    group.insert(group.index(after) + 1, wire)
    right = " ".join(f"({' '.join(axis)})" for axis in axes)
    return Network(f"{', '.join(' '.join(core) for core in cores)} -> {right}", sizes, network.feed)
