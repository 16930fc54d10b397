"""From a classical format to its semi-tensor form: part of a mode moves from its core to the other end of a bond."""

from __future__ import annotations

from dataclasses import replace
from math import lcm, prod
from typing import Any, TypeAlias

from tnc import Network
from tnc.errors import RankError, WeightError
from tnc.modes import balanced, roles
from tnc.typing import Rank, Shape

__all__ = ["Ratio", "semitensor", "step"]

Ratio: TypeAlias = int | tuple[int, ...]
"""One ratio ``t`` for every bond of a core with a row or column mode, or one per bond."""


def step(t: Ratio) -> int:
    """The smallest rank that every ratio divides. A `RankError` if one is not a whole number of at least 1."""
    ratios = t if isinstance(t, tuple) else (t,)
    if not ratios or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in ratios):
        raise RankError(f"t={t!r}: whole numbers of at least 1 are needed, one or one per bond")
    return lcm(*ratios)


def semitensor(classical: Any, t: Ratio, end: int, shape: Shape, rank: Rank) -> Network:
    """The network of `classical` with semi-tensor products ``G ⋉ H = G (H ⊗ I_t)`` at its bonds.

    `H` has the mode ``I = (i s)`` and the bond ``R = (r s)``; their common fast index `s` of size `t` moves
    to `G` and to the right: ``H`` shrinks to ``(R/t, I/t)``, ``G`` keeps its size.

    Parameters
    ----------
    classical : Decomposition
        The classical format, with the fields `rows` and `columns`.
    t : int or tuple of int
        The ratio, or one ratio per bond.
    end : int
        Position of the bond in the cores `H`: first in a chain (0), last in a Tucker factor (-1).
    shape : tuple of int
        Shape of the weight.
    rank : int or sequence of int
        The ranks of the classical format.

    Raises
    ------
    RankError, WeightError
        A ratio does not divide its bond's rank, or a factor that was given; or it stands at a kernel or a stack.
    """
    plain, _ = classical.network(shape, 1), step(t)
    divided = _divisible(classical, plain, shape, t, end).network(shape, rank)
    sizes, cores, axes = dict(divided.sizes), [[*core] for core in divided.operands], [[*axis] for axis in divided.axes]
    for bond, (mode, ratio) in _ratios(plain, t, end).items():
        if sizes[bond] % ratio:
            raise RankError(f"rank {sizes[bond]} of bond {bond!r} is not a multiple of t={ratio} ({divided.pattern})")
        if ratio > 1:
            sizes |= {bond: sizes[bond] // ratio, mode: sizes[mode] // ratio, (wire := f"t{bond[1:]}"): ratio}
            for group, after in [(g, bond) for g in cores if mode not in g] + [(g, mode) for g in axes]:
                if after in group:
                    group.insert(group.index(after) + 1, wire)
    right = " ".join(f"({' '.join(axis)})" for axis in axes)
    return Network(f"{', '.join(map(' '.join, cores))} -> {right}", sizes)


def _ratios(network: Network, t: Ratio, end: int) -> dict[str, tuple[str, int]]:
    """Mode and ratio of the bonds to divide: not of those that end at a kernel, a stack or a Tucker core."""
    modes = {core[end]: mode for core in network.operands for mode in core if mode[0] in "mn"}
    able = [bond for bond in network.bonds if bond in modes]
    given = dict(zip(network.bonds, t, strict=False)) if isinstance(t, tuple) else dict.fromkeys(able, t)
    if isinstance(t, tuple) and (len(t) != len(network.bonds) or any(given[b] > 1 for b in given if b not in able)):
        raise RankError(f"t={t}: one ratio for each of the bonds {network.bonds} is needed, 1 except at {able}")
    return {bond: (modes[bond], given[bond]) for bond in able}


def _divisible(classical: Any, plain: Network, shape: Shape, t: Ratio, end: int) -> Any:
    """The same format with factors that the ratios divide: its own, or multiples that may overshoot an axis."""
    ratio = dict(_ratios(plain, t, end).values())
    for name, letter, axis in zip(("rows", "columns"), "mn", roles(shape)[1:3], strict=True):
        by = {mode: ratio.get(mode, 1) for mode in plain.outer if mode[0] == letter}
        if wrong := {mode: plain.sizes[mode] for mode, n in by.items() if plain.sizes[mode] % n}:
            if getattr(classical, name):
                raise WeightError(f"t={t} does not divide the factors {wrong} of {name}={getattr(classical, name)}")
            least = balanced(-(-shape[axis] // prod(by.values())), len(by))
            classical = replace(classical, **{name: tuple(n * m for n, m in zip(least, by.values(), strict=True))})
    return classical
