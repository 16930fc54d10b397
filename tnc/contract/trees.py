"""Contraction trees: all of a few operands, sequential ones, and those of fewest multiplications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, reduce
from itertools import combinations, product
from math import prod
from operator import itemgetter, or_
from typing import TypeAlias

from tnc.contract.order import Indices, Pair

__all__ = ["multiplications", "sequential"]

MOST_OPERANDS = 5
"""Up to this number of operands, all trees are priced. With more, only some are."""

Path: TypeAlias = tuple[Pair, ...]
"""An order of contractions, as opt_einsum writes it."""


@lru_cache(maxsize=16)
def all_trees(n: int) -> tuple[Path, ...]:
    """All contraction trees of `n` operands, each with one order of its contractions."""

    def grow(held: tuple[frozenset[int], ...]) -> Iterator[tuple[frozenset[frozenset[int]], Path]]:
        if len(held) == 1:
            yield frozenset(), ()
            return
        for i, j in combinations(range(len(held)), 2):
            merged = held[i] | held[j]
            rest = tuple(x for k, x in enumerate(held) if k not in (i, j))
            for nodes, path in grow((*rest, merged)):
                yield nodes | {merged}, ((i, j), *path)

    trees: dict[frozenset[frozenset[int]], Path] = {}  # a tree is the set of its intermediates
    for nodes, path in grow(tuple(frozenset([k]) for k in range(n))):
        trees.setdefault(nodes, path)
    return tuple(trees.values())


def sequential(n: int) -> Iterator[Path]:
    """Two orders that contract the first operand with the others: from left to right, and from right to left."""
    yield ((0, 1), *((0, n - k - 1) for k in range(1, n - 1)))
    yield ((0, n - 1), *((n - k - 2, n - k - 1) for k in range(1, n - 1)))


def contiguous(operands: Sequence[Indices], output: Indices, size: Mapping[str, int]) -> list[Path]:
    """Trees of fewest multiplications of those that contract neighbours only.

    The first operand may stand anywhere between the others. Dynamic programming over intervals takes n^4 steps for n
    operands, whatever bonds they share.

    Parameters
    ----------
    operands : sequence of tuple of str
        Index names of every array.
    output : tuple of str
        Index names of the result.
    size : mapping of str to int
        Size of every index.

    Returns
    -------
    list of path
        There may be several. They have the same number of multiplications, but they may differ in what they copy.
    """
    n = len(operands)
    bits = {name: 1 << k for k, name in enumerate(size)}  # a set of indices is an integer
    masks = [sum(bits[name] for name in core) for core in operands]
    output_mask = sum(bits[name] for name in output)

    @cache
    def entries(mask: int) -> int:
        return prod(m for name, m in size.items() if mask & bits[name])

    candidates = set()
    for position, last in product(range(n), (False, True)):
        order = [*range(1, position + 1), 0, *range(position + 1, n)]
        total, cuts = _intervals([masks[k] for k in order], output_mask, entries, last)
        candidates.add((total, _path(order, cuts)))
    fewest = min(total for total, _ in candidates)
    return sorted(path for total, path in candidates if total == fewest)


def _intervals(
    masks: Sequence[int], output: int, entries: Callable[[int], int], last: bool
) -> tuple[int, dict[tuple[int, int], int]]:
    """Fewest multiplications of a row of operands, and where to cut each interval.

    Of equally good cuts, it takes the first, or the last if `last` is set.
    """
    n = len(masks)

    def union(parts: Sequence[int]) -> int:
        return reduce(or_, parts, 0)

    total: dict[tuple[int, int], int] = {}
    cuts: dict[tuple[int, int], int] = {}
    held: dict[tuple[int, int], int] = {}  # indices of the contracted interval
    for width in range(1, n + 1):
        for a in range(n - width + 1):
            b = a + width
            outside = union(masks[:a]) | union(masks[b:]) | output
            held[a, b] = union(masks[a:b]) & outside
            candidates = range(b - 1, a, -1) if last else range(a + 1, b)
            ways = ((total[a, c] + total[c, b] + entries(held[a, c] | held[c, b]), c) for c in candidates)
            total[a, b], cuts[a, b] = min(ways, default=(0, a), key=itemgetter(0))
    return total[0, n], cuts


def _path(order: Sequence[int], cuts: Mapping[tuple[int, int], int]) -> Path:
    """The contractions of a tree over intervals, as opt_einsum writes them."""
    held: list[tuple[int, ...]] = [(k,) for k in range(len(order))]  # the operands that each array is made of
    path = []

    def contract(a: int, b: int) -> tuple[int, ...]:
        if b - a == 1:
            return (order[a],)
        left = contract(a, cuts[a, b])
        right = contract(cuts[a, b], b)
        i, j = sorted((held.index(left), held.index(right)))
        path.append((i, j))
        del held[j], held[i]
        held.append(left + right)
        return left + right

    contract(0, len(order))
    return tuple(path)


def multiplications(operands: Sequence[Indices], output: Indices, size: dict[str, int], path: Path) -> int:
    """Multiplications of a contraction in a given order.

    Parameters
    ----------
    operands : sequence of tuple of str
        Index names of every array.
    output : tuple of str
        Index names of the result.
    size : dict of str to int
        Size of every index.
    path : tuple of (int, int)
        Pairs to contract, as opt_einsum writes them.
    """
    held = [set(core) for core in operands]
    total = 0
    for i, j in path:
        union = held[i] | held[j]
        rest = [core for k, core in enumerate(held) if k not in (i, j)]
        total += prod(size[name] for name in union)
        held = [*rest, union & set(output).union(*rest)]
    return total
