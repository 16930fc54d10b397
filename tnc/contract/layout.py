"""How two arrays become one matrix product: views of both, and the order of the result's indices.

All ways to multiply a pair are listed, with the entries that each of them copies. The plan takes the cheapest. The
price includes the copy that the step which uses the result would need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod
from typing import NamedTuple, TypeAlias

from tnc.contract.order import Indices

__all__ = [
    "DYNAMIC", "NARROW", "Consumer", "Dim", "Layout", "View", "cheapest", "count", "operand", "scatter", "view",
]  # fmt: skip

Sizes: TypeAlias = Mapping[str, int]

Consumer: TypeAlias = tuple[set[str], Indices | None]
"""What is asked of a result: the indices that the next step contracts, or else an order of all its indices."""

DYNAMIC = ("*", ".")
"""Indices whose size is read from the arrays at run time: the batch, and the positions of a feature map."""

NARROW = 16
"""A matrix product with fewer columns does not fill the vector registers of the processor."""

_SCATTER_CACHED = 4
"""How many times slower a copy of single entries is than one of long runs, within a block that fits in the cache."""

_SCATTER_UNCACHED = 24
"""The same beyond the cache."""

_CACHED = 1 << 16
"""Largest number of entries of a block that stays in the cache during a copy."""


class Dim(NamedTuple):
    """The size of a merged axis with dynamic indices: `factor` times the sizes of the indices `names`."""

    factor: int
    names: Indices


Extents: TypeAlias = tuple[int | Dim, ...]
"""A shape in which some sizes are known at run time only."""


@dataclass(frozen=True)
class View:
    """How to see an array as another one: reshape, permute, reshape, and swap the last two axes.

    Attributes
    ----------
    split : tuple of int or Dim, optional
        The first shape. None if the array has it already.
    order : tuple of int, optional
        The permutation of these axes. None if there is none.
    merge : tuple of int or Dim, optional
        The last shape. None if the array has it already.
    turn : bool
        Whether the last two axes are swapped afterwards.
    """

    split: Extents | None = None
    order: tuple[int, ...] | None = None
    merge: Extents | None = None
    turn: bool = False


def _extents(groups: Sequence[Sequence[str]], sizes: Sizes) -> Extents:
    """The shape of an array whose axes merge these groups of indices."""
    return tuple(_extent(group, sizes) for group in groups)


def _extent(group: Sequence[str], sizes: Sizes) -> int | Dim:
    dynamic = tuple(i for i in group if i in DYNAMIC)
    factor = prod(sizes[i] for i in group if i not in DYNAMIC)
    return Dim(factor, dynamic) if dynamic else factor


def _runs(source: Indices, groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Indices that are neighbours both in `source` and in `groups`. Each run can be permuted as one axis."""
    position = {name: k for k, name in enumerate(source)}
    runs: list[list[str]] = []
    for group in groups:
        for k, name in enumerate(group):
            if k and position[runs[-1][-1]] + 1 == position[name]:
                runs[-1].append(name)
            else:
                runs.append([name])
    return runs


def view(source: Indices, form: Sequence[Indices], groups: Sequence[Indices], sizes: Sizes) -> View:
    """View an array with another order and grouping of its indices.

    Parameters
    ----------
    source : tuple of str
        The array's indices in memory order.
    form : sequence of tuple of str
        The indices that each axis of the array merges.
    groups : sequence of tuple of str
        The indices that each axis of the view merges.
    sizes : mapping of str to int
        Size of every index.

    Returns
    -------
    View
    """
    runs = _runs(source, groups)
    position = {name: k for k, name in enumerate(source)}
    in_memory = sorted(runs, key=lambda run: position[run[0]])
    order = tuple(in_memory.index(run) for run in runs)
    merge = _extents(groups, sizes)
    if order == tuple(range(len(order))):
        return View(merge=None if list(form) == list(groups) else merge)
    split = None if [tuple(run) for run in in_memory] == list(form) else _extents(in_memory, sizes)
    return View(split, order, None if [list(group) for group in groups] == runs else merge)


def operand(source: Indices, form: Sequence[Indices], groups: Sequence[Indices], sizes: Sizes) -> View:
    """View an array as matrices. Their axes are swapped if the fastest index belongs to the rows.

    If the array must be copied, it is then written in the order in which it is read. The same holds for its gradient.

    Parameters
    ----------
    source : tuple of str
        The array's indices in memory order.
    form : sequence of tuple of str
        The indices that each axis of the array merges.
    groups : sequence of tuple of str
        The indices of the batch, if there are any, of the rows and of the columns.
    sizes : mapping of str to int
        Size of every index.

    Returns
    -------
    View
    """
    turn = _turned(source, groups)
    matrices = view(source, form, _transposed(groups) if turn else groups, sizes)
    return replace(matrices, turn=turn)


def _transposed(groups: Sequence[Indices]) -> Sequence[Indices]:
    """The groups with rows and columns swapped."""
    return (*groups[:-2], groups[-1], groups[-2])


def _turned(memory: Indices, groups: Sequence[Indices]) -> bool:
    """Whether the fastest index of an array belongs to the rows of the matrices, and there is more than one column."""
    return bool(groups[-1]) and memory[-1:] != () and memory[-1] in groups[-2]


def _contiguous(memory: Indices, groups: Sequence[Indices]) -> bool:
    """Whether the indices of every group are neighbours in memory, in this order."""
    return len(_runs(memory, groups)) == sum(bool(group) for group in groups)


def _grouped(names: Sequence[str], first: set[str]) -> Indices:
    """The indices with those of `first` in front. Otherwise their order stays."""
    return tuple(i for i in names if i in first) + tuple(i for i in names if i not in first)


class Layout(NamedTuple):
    """One way to multiply a pair of operands.

    Attributes
    ----------
    copied : int
        Entries that must be copied to lay out both operands.
    slow : int
        What short runs add to the copies, in entries copied in long runs.
    swap : bool
        Whether the second operand of the pair is the left one.
    left, right : tuple of tuple of str
        The indices of each axis of the operands: (batch, rows, inner) and (batch, inner, columns). Without a batch, the
        first axis is missing. Where `spread` is set, they are (rows, inner) and (loop, inner, columns).
    form : tuple of tuple of str
        The indices of each axis of the result: (batch or loop, rows, columns), or (rows, columns).
    spread : bool
        Whether a single left matrix multiplies every matrix of the right operand.
    work : tuple of int
        (many, m, n, k): the number of matrix products, and their sizes.
    """

    copied: int
    slow: int
    swap: bool
    left: tuple[Indices, ...]
    right: tuple[Indices, ...]
    form: tuple[Indices, ...]
    spread: bool
    work: tuple[int, int, int, int]

    @property
    def result(self) -> Indices:
        """The result's indices in memory order."""
        return tuple(i for group in self.form for i in group)


def count(names: Sequence[str], sizes: Sizes) -> int:
    """Entries of an array with these indices."""
    return prod(sizes[i] for i in names)


def _copy(memory: Indices, groups: Sequence[Indices], sizes: Sizes) -> tuple[int, int]:
    """Entries copied to view an array as matrices, and what short runs add to this, in entries.

    Nothing is copied if the indices of each group are neighbours in memory and the rows or the columns have unit
    stride.
    """
    if _contiguous(memory, groups) and (not memory or any(memory[-1] in group for group in groups[-2:])):
        return 0, 0
    written = _transposed(groups) if _turned(memory, groups) else groups
    return count(memory, sizes), scatter(memory, [i for group in written for i in group], sizes)


def scatter(memory: Indices, target: Sequence[str], sizes: Sizes) -> int:
    """What the short runs of a copy cost, in entries copied in long runs.

    Parameters
    ----------
    memory : tuple of str
        The order of the indices before the copy.
    target : sequence of str
        Their order after it.
    sizes : mapping of str to int
        Size of every index.
    """
    last = 1
    run = 1  # entries that stay neighbours: the product of the last indices that both orders share
    while last <= len(memory) and memory[-last] == target[-last]:
        run *= sizes[memory[-last]]
        last += 1
    first = 0
    while first < len(memory) and memory[first] == target[first]:
        first += 1
    block = count(memory[first:], sizes)  # the copy permutes one block after another
    factor = _SCATTER_CACHED if block <= _CACHED else _SCATTER_UNCACHED
    return factor * count(memory, sizes) // run


def _narrow(work: tuple[int, int, int, int]) -> float:
    """What few columns add to the price of a product, in entries moved: they do not fill the vector registers."""
    many, m, n, k = work
    return 0.5 * many * m * n * k if 1 < n < NARROW <= m else 0.0


class _Pair(NamedTuple):
    """A left and a right operand in memory order, and the roles of their indices.

    `batch` indices are shared and kept, indices of `inners` are shared and summed over (in one order or another).
    `rows` are those of the left operand alone, and `columns` those of the right one.
    """

    left: Indices
    right: Indices
    swap: bool
    batch: Indices
    rows: Indices
    columns: Indices
    inners: set[Indices]


def _pair(left: Indices, right: Indices, swap: bool, kept: set[str]) -> _Pair:
    shared = [i for i in left if i in right]
    batch = tuple(i for i in shared if i in kept)
    rows = tuple(i for i in left if i not in shared)
    columns = tuple(i for i in right if i not in shared)
    summed = set(shared) - set(batch)
    inners = {tuple(i for i in memory if i in summed) for memory in (left, right)}
    return _Pair(left, right, swap, batch, rows, columns, inners)


def _ways(
    a: Indices, b: Indices, kept: set[str], wanted: set[str], position: Mapping[str, float], sizes: Sizes
) -> Iterator[Layout]:
    """Ways to multiply operands of memory orders `a` and `b`.

    The `wanted` indices of the result should be neighbours, or all should follow `position`.
    """
    for pair in (_pair(a, b, False, kept), _pair(b, a, True, kept)):
        row_orders = _orders(pair.rows, wanted, position)
        column_orders = _orders(pair.columns, wanted, position)
        yield from _plain_ways(pair, row_orders, column_orders, sizes)
        if not pair.batch:
            yield from _spread_ways(pair, row_orders, _halves(pair.right, pair.columns, wanted), sizes)


def _orders(names: Indices, wanted: set[str], position: Mapping[str, float]) -> set[Indices]:
    """Orders to consider for the rows or the columns: as in memory, `wanted` ones first or last, or by position."""
    by_position = tuple(sorted(names, key=position.__getitem__))
    return {names, _grouped(names, wanted), _grouped(names, set(names) - wanted), by_position}


def _plain_ways(pair: _Pair, row_orders: set[Indices], column_orders: set[Indices], sizes: Sizes) -> Iterator[Layout]:
    """One product of two matrices, or one for each entry of the batch: (batch, m, k) by (batch, k, n)."""
    batch = (pair.batch,) if pair.batch else ()
    many = count(pair.batch, sizes)
    for inner, rows in product(pair.inners, row_orders):
        left = (*batch, rows, inner)
        left_copy = _copy(pair.left, left, sizes)
        for columns in column_orders:
            right = (*batch, inner, columns)
            copied, slow = _sum(left_copy, _copy(pair.right, right, sizes))
            work = (many, count(rows, sizes), count(columns, sizes), count(inner, sizes))
            yield Layout(copied, slow, pair.swap, left, right, (*batch, rows, columns), False, work)


def _spread_ways(
    pair: _Pair, row_orders: set[Indices], halves: set[tuple[Indices, Indices]], sizes: Sizes
) -> Iterator[Layout]:
    """A single left matrix that multiplies many right ones: (m, k) by (loop, k, n)."""
    for inner, rows in product(pair.inners, row_orders):
        left = (rows, inner)
        left_copy = _copy(pair.left, left, sizes)
        for loop, columns in halves:
            right = (loop, inner, columns)
            copied, slow = _sum(left_copy, _copy(pair.right, right, sizes))
            work = (count(loop, sizes), count(rows, sizes), count(columns, sizes), count(inner, sizes))
            yield Layout(copied, slow, pair.swap, left, right, (loop, rows, columns), True, work)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _halves(memory: Indices, free: Indices, wanted: set[str]) -> set[tuple[Indices, Indices]]:
    """Ways to divide the free indices of `memory` into those looped over and those of the columns."""
    outside = tuple(i for i in free if i in wanted)
    inside = tuple(i for i in free if i not in wanted)
    first_contracted = next((k for k, i in enumerate(memory) if i not in free), 0)
    before = tuple(i for i in memory[:first_contracted] if i in free)
    after = tuple(i for i in memory[first_contracted:] if i in free)
    candidates = ((outside, inside), (inside, outside), (before, after))
    return {(loop, columns) for loop, columns in candidates if loop and columns}


def _copy_of_consumer(result: Indices, consumer: Consumer, sizes: Sizes) -> int:
    """Entries that the consumer of a result must copy.

    It copies if the result does not have the order asked for, or if the indices it contracts are not neighbours.
    """
    contracted, order = consumer
    if order is not None:
        return 0 if result == order else count(result, sizes) + scatter(result, order, sizes)
    marks = [i in contracted for i in result]
    changes = sum(mark != following for mark, following in pairwise(marks))
    return count(result, sizes) if changes > 1 else 0


def _price(layout: Layout, consumer: Consumer, sizes: Sizes) -> float:
    """Entries moved, roughly. Many small products cost as much as moving their operands once more."""
    many, m, n, k = layout.work
    copied_later = _copy_of_consumer(layout.result, consumer, sizes)
    small = many * (m * k + k * n + 1024) if many > 1 else 0
    return 2 * (layout.copied + layout.slow + copied_later) + 0.25 * small + _narrow(layout.work)


def _descents(result: Indices, position: Mapping[str, float]) -> int:
    """Number of neighbours in the wrong order."""
    return sum(position[i] > position[j] for i, j in pairwise(result))


def cheapest(
    a: Indices, b: Indices, kept: set[str], consumer: Consumer, position: Mapping[str, float], sizes: Sizes
) -> Layout:
    """The cheapest way to multiply two operands.

    Parameters
    ----------
    a, b : tuple of str
        The indices of the operands in memory order.
    kept : set of str
        Indices needed later. Those that both operands have are a batch.
    consumer : (set of str, tuple of str or None)
        The indices that the next step contracts, or else the order asked of the result.
    position : mapping of str to float
        Where every index belongs in the end. It decides between layouts of the same price.
    sizes : mapping of str to int
        Size of every index.

    Returns
    -------
    Layout
    """
    ways = _ways(a, b, kept, consumer[0], position, sizes)
    return min(ways, key=lambda way: (_price(way, consumer, sizes), _descents(way.result, position)))
