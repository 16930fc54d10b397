"""A limit on the memory that rebuilding a weight may take, checked before anything is planned or contracted.

A small file can describe a network with small cores and a small weight that cannot be contracted without a tensor that
fills the memory. The largest intermediate is therefore limited in relation to the weight and to the cores. With the
decompositions of this library it is smaller than the weight, or a few times larger for `cp` at a high rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod

from tnc.contract.order import Indices, Pair, find
from tnc.errors import PatternError
from tnc.network import MOST_AXES, Network
from tnc.typing import Shape

__all__ = ["FLOOR", "RATIO", "allowed", "check", "path"]

FLOOR = 1 << 24
"""Entries that an intermediate of any network may have."""

RATIO = 1 << 10
"""How many times larger than the weight and the cores together an intermediate may be, if that is more than `FLOOR`."""


def allowed(network: Network, shape: Shape) -> int:
    """Entries that the largest intermediate may have when a weight of this shape is rebuilt."""
    return max(FLOOR, RATIO * (prod(shape) + network.n_params))


@lru_cache(maxsize=4096)
def check(network: Network, shape: Shape) -> None:
    """Check that a weight of this shape can be rebuilt with intermediates that are `allowed`.

    Raises
    ------
    PatternError
        Every order of contraction that was tried has a larger intermediate.
    """
    most = allowed(network, shape)
    for level in network.levels:
        fed = 0 if level.feed is None else prod(level.sizes[name] for name in level.operands[0])
        too_large = max(fed, prod(level.shape)) > most
        if too_large or path(level.operands, level.outer, level.sizes, most) is None:
            raise PatternError(
                f"{level.pattern!r} cannot be contracted within {most:,} entries, {RATIO:,} times those of the "
                f"cores and of a weight of shape {tuple(shape)}"
            )


def path(operands: Sequence[Indices], output: Indices, sizes: Mapping[str, int], most: int) -> list[Pair] | None:
    """Find an order of contraction without a large intermediate.

    Parameters
    ----------
    operands : sequence of tuple of str
        Index names of every array.
    output : tuple of str
        Index names of the result.
    sizes : mapping of str to int
        Size of every index.
    most : int
        Entries that an intermediate may have.

    Returns
    -------
    list of (int, int), or None
        Pairs to contract, as opt_einsum writes them. None if no such order was found.
    """
    for order in _orders(operands, output, sizes):
        entries, axes = _largest(operands, output, sizes, order)
        if entries <= most and axes <= MOST_AXES:
            return order
    return None


def _orders(operands: Sequence[Indices], output: Indices, sizes: Mapping[str, int]) -> Iterator[list[Pair]]:
    """Orders to try: from first to last, from last to first, and a greedy one. The first two fit chains and rings."""
    steps = len(operands) - 1
    yield [(0, 1)][:steps] + [(0, n) for n in range(steps - 1, 0, -1)]
    yield [(n - 1, n) for n in range(steps, 0, -1)]
    yield find(operands, output, sizes, "greedy")


def _largest(
    operands: Sequence[Indices], output: Indices, sizes: Mapping[str, int], order: Sequence[Pair]
) -> tuple[int, int]:
    """Most entries, and most axes, of the result of any step."""
    held = [set(core) for core in operands]
    uses = Counter(name for core in [*held, set(output)] for name in core)
    entries = 0
    axes = 0
    for i, j in order:
        right = held.pop(max(i, j))
        left = held.pop(min(i, j))
        uses.subtract(left)
        uses.subtract(right)
        result = {name for name in left | right if uses[name]}
        uses.update(result)
        held.append(result)
        entries = max(entries, prod(sizes[name] for name in result))
        axes = max(axes, len(result))
    return entries, axes
