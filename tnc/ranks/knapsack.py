"""One allowance for many weights: each takes one of its options, so that the predicted loss rises least.

This is a knapsack problem with one choice per weight. Dynamic programming solves it exactly, on a grid of sizes that is
so fine that rounding up to it leaves well under a hundredth of the allowance unused. A larger allowance never predicts
a larger loss, and more options for a weight never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

__all__ = ["Option", "cheapest"]

_CELLS, _CELLS_EACH = 10_000, 200
"""Cells of the grid, of which an allowance has at least half: at least, and for each weight."""

Key = TypeVar("Key")


class Option(NamedTuple):
    """What a weight can become.

    Attributes
    ----------
    size : int
        Of what the allowance counts.
    rise : float
        Predicted rise of the loss, 0 for the dense weight.
    """

    size: int
    rise: float


def cheapest(options: Mapping[Key, Sequence[Option]], allowance: int) -> dict[Key, int] | None:
    """For each weight the number of an option: the smallest sum of rises within the allowance.

    Parameters
    ----------
    options : mapping to sequence of Option
        At least one for each weight.
    allowance : int
        Largest sum of the sizes.

    Returns
    -------
    dict or None
        None if the smallest options exceed the allowance.
    """
    least = {key: min(range(len(mine)), key=lambda k: (mine[k].size, mine[k].rise)) for key, mine in options.items()}
    if sum(options[key][k].size for key, k in least.items()) > allowance:
        return None
    ideal = {key: min(range(len(mine)), key=lambda k: (mine[k].rise, mine[k].size)) for key, mine in options.items()}
    if sum(options[key][k].size for key, k in ideal.items()) <= allowance:
        return ideal
    bound = sum(max(option.size for option in mine) for mine in options.values())
    while 1 < allowance <= bound // 2:
        bound //= 2
    unit = _unit(bound, len(options))
    found = [_solved(options, unit, allowance // unit), least]
    if unit > 1 and allowance < bound // 2 + (len(options) + 1) * unit:
        # The grid of smaller allowances is finer. Near them it may know what rounding hides here.
        finer = _unit(bound // 2, len(options))
        found.append(_solved(options, finer, (bound // 2) // finer))
    return min(filter(None, found), key=lambda chosen: sum(options[key][k].rise for key, k in chosen.items()))


def _unit(bound: int, count: int) -> int:
    """The size of a cell of the grid for allowances up to `bound`."""
    return max(1, bound // max(_CELLS, _CELLS_EACH * count))


def _solved(options: Mapping[Key, Sequence[Option]], unit: int, cells: int) -> dict[Key, int] | None:
    """The best options whose sizes, rounded up to whole units, fit into the cells; None if none do."""
    best = np.zeros(cells + 1)  # smallest rise of the weights so far, for each number of cells
    taken = []
    for mine in options.values():
        total, choice = np.full(cells + 1, np.inf), np.zeros(cells + 1, np.int16)
        for k in _worthwhile(mine):
            size = -(-mine[k].size // unit)
            if size > cells:
                continue
            trial = best[: cells + 1 - size] + mine[k].rise
            better = trial < total[size:]
            total[size:][better] = trial[better]
            choice[size:][better] = k
        best = total
        taken.append(choice)
    if not np.isfinite(best[-1]):
        return None
    left, chosen = cells, {}
    for (key, mine), choice in zip(reversed(list(options.items())), reversed(taken), strict=True):
        k = int(choice[left])
        chosen[key] = k
        left -= -(-mine[k].size // unit)
    return {key: chosen[key] for key in options}


def _worthwhile(options: Sequence[Option]) -> list[int]:
    """Numbers of the options that no smaller option equals, by size."""
    kept: list[int] = []
    for k in sorted(range(len(options)), key=lambda k: options[k]):
        if not kept or options[k].rise < options[kept[-1]].rise:
            kept.append(k)
    return kept
