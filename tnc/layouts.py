"""How two arrays become one matrix product: views of both, and the order of the result's indices.

Every way to multiply a pair is listed with what it copies; the plan takes the cheapest, with an eye on the step that
consumes the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

from tnc.paths import Indices

__all__ = ["DYNAMIC", "NARROW", "Dim", "Layout", "View", "cheapest", "count", "operand", "scatter", "view"]

Sizes = Mapping[str, int]

DYNAMIC = ("*", ".")
"""Indices whose size is read off the arrays at run time: the batch, and the positions of a feature map."""


NARROW = 16
"""Columns of a product below which the processor's vectors go half empty."""

_NEAR, _FAR = 4, 24
"""A copy of single entries is so many times slower than one of long runs: within blocks of the cache, and beyond."""

_CACHED = 1 << 16
"""Entries of a block within which a copy stays in the cache."""


class Dim(NamedTuple):
    """A merged axis with dynamic indices: their sizes times a constant."""

    factor: int
    names: Indices


@dataclass(frozen=True)
class View:
    """Reshape, permute, reshape, and turn the last two axes: each part is None where it would change nothing."""

    split: tuple[Any, ...] | None = None
    order: tuple[int, ...] | None = None
    merge: tuple[Any, ...] | None = None
    turn: bool = False


def _merged(groups: Sequence[Sequence[str]], sizes: Sizes) -> tuple[Any, ...]:
    def one(group: Sequence[str]) -> Any:
        moving = tuple(i for i in group if i in DYNAMIC)
        factor = prod(sizes[i] for i in group if i not in DYNAMIC)
        return Dim(factor, moving) if moving else factor

    return tuple(one(group) for group in groups)


def _runs(source: Indices, groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Neighbours in `source` that stay neighbours in `groups`: they move as one axis."""
    place = {name: k for k, name in enumerate(source)}
    runs: list[list[str]] = []
    for group in groups:
        for k, name in enumerate(group):
            if k and place[runs[-1][-1]] + 1 == place[name]:
                runs[-1].append(name)
            else:
                runs.append([name])
    return runs


def view(source: Indices, form: Sequence[Indices], groups: Sequence[Indices], sizes: Sizes) -> View:
    """View an array of indices `source`, of shape `form`, with the axes `groups`."""
    runs, place = _runs(source, groups), {name: k for k, name in enumerate(source)}
    before = sorted(runs, key=lambda run: place[run[0]])
    order = tuple(before.index(run) for run in runs)
    merge = _merged(groups, sizes)
    if order == tuple(range(len(order))):
        return View(merge=None if list(form) == list(groups) else merge)
    split = None if [tuple(run) for run in before] == list(form) else _merged(before, sizes)
    return View(split, order, None if [list(g) for g in groups] == runs else merge)


def operand(source: Indices, form: Sequence[Indices], groups: Sequence[Indices], sizes: Sizes) -> View:
    """`view` as matrices: one that must be copied is written as it is read, and then turned; so are gradients."""
    turn = _turned(source, groups)
    made = view(source, form, (*groups[:-2], groups[-1], groups[-2]) if turn else groups, sizes)
    return replace(made, turn=turn)


def _turned(memory: Indices, groups: Sequence[Indices]) -> bool:
    """Whether the fastest index of an array belongs to the rows of the matrices made of it."""
    return bool(groups[-1]) and memory[-1:] != () and memory[-1] in groups[-2]


def _pieces(memory: Indices, groups: Sequence[Indices]) -> bool:
    """Whether every group is in one piece."""
    return len(_runs(memory, groups)) == sum(bool(group) for group in groups)


def _grouped(names: Sequence[str], first: set[str]) -> Indices:
    return tuple(i for i in names if i in first) + tuple(i for i in names if i not in first)


class Layout(NamedTuple):
    """One way to multiply a pair, and the order of the indices it yields."""

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
    """Entries copied to multiply `memory` as `groups`, and how many more the copy costs as if it moved.

    None if each group is in one piece and one has unit stride. Short runs are slow.
    """
    if _pieces(memory, groups) and (not memory or any(memory[-1] in g for g in groups[-2:])):
        return 0, 0
    turned = (*groups[:-2], groups[-1], groups[-2]) if _turned(memory, groups) else groups
    return count(memory, sizes), scatter(memory, [i for group in turned for i in group], sizes)


def scatter(memory: Indices, target: Sequence[str], sizes: Sizes) -> int:
    """What the short runs of a copy from one order of the indices to another cost, in entries moved in long ones."""
    run, k, first = 1, 1, 0
    while k <= len(memory) and memory[-k] == target[-k]:
        run, k = run * sizes[memory[-k]], k + 1
    while first < len(memory) and memory[first] == target[first]:
        first += 1
    near = count(memory[first:], sizes) <= _CACHED
    return (_NEAR if near else _FAR) * count(memory, sizes) // run


def _narrow(work: tuple[int, int, int, int]) -> float:
    """What a product of few columns costs beyond its like, in entries moved: vectors of the processor go half empty."""
    many, m, n, k = work
    return 0.5 * many * m * n * k if 1 < n < NARROW <= m else 0.0


def _ways(
    a: Indices, b: Indices, kept: set[str], wanted: set[str], place: Mapping[str, float], sizes: Sizes
) -> Iterator[Layout]:
    """Ways to multiply operands of memory orders `a` and `b`; `wanted` indices should stay together, or in `place`."""
    for swap, (x, y) in enumerate(((a, b), (b, a))):
        shared = [i for i in x if i in y]
        batch = tuple(i for i in shared if i in kept)
        rows, columns = (tuple(i for i in z if i not in shared) for z in (x, y))
        inners = {tuple(i for i in z if i in shared and i not in batch) for z in (x, y)}
        lead = (batch,) if batch else ()
        n_batch = count(batch, sizes)
        orders = [
            {z, _grouped(z, wanted), _grouped(z, set(z) - wanted), tuple(sorted(z, key=place.__getitem__))}
            for z in (rows, columns)
        ]
        for inner, left, right in product(inners, *orders):
            groups = ((*lead, left, inner), (*lead, inner, right))
            copied, slow = _sum(_copy(x, groups[0], sizes), _copy(y, groups[1], sizes))
            work = (n_batch, count(left, sizes), count(right, sizes), count(inner, sizes))
            yield Layout(copied, slow, bool(swap), *groups, (*lead, left, right), False, work)
        if batch:
            continue
        for inner, left, (loop, tail) in product(inners, orders[0], _halves(y, columns, wanted)):
            groups = ((left, inner), (tuple(loop), inner, tuple(tail)))
            copied, slow = _sum(_copy(x, groups[0], sizes), _copy(y, groups[1], sizes))
            work = (count(loop, sizes), count(left, sizes), count(tail, sizes), count(inner, sizes))
            yield Layout(copied, slow, bool(swap), *groups, (tuple(loop), left, tuple(tail)), True, work)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _halves(memory: Indices, free: Indices, wanted: set[str]) -> set[tuple[Indices, Indices]]:
    """Ways to part free indices into those looped over and those multiplied at once."""
    outside, inside = (tuple(i for i in free if (i in wanted) is side) for side in (True, False))
    at = next((k for k, i in enumerate(memory) if i not in free), 0)  # where the contracted indices stand
    before, after = (tuple(i for i in part if i in free) for part in (memory[:at], memory[at:]))
    return {pair for pair in ((outside, inside), (inside, outside), (before, after)) if all(pair)}


def _again(result: Indices, wanted: set[str], final: Indices | None, sizes: Sizes) -> int:
    """Entries that the consumer of a result must copy: its indices are out of order, or `wanted` in pieces."""
    if final is not None:
        return 0 if result == final else count(result, sizes) + scatter(result, final, sizes)
    marks = [i in wanted for i in result]
    return count(result, sizes) if sum(p != q for p, q in pairwise(marks)) > 1 else 0


def _price(layout: Layout, consumer: tuple[set[str], Indices | None], sizes: Sizes) -> float:
    """Entries moved, roughly; many small products count as moving their operands once more."""
    many, m, n, k = layout.work
    again = _again(layout.result, *consumer, sizes)
    small = many * (m * k + k * n + 1024) if many > 1 else 0
    return 2 * (layout.copied + layout.slow + again) + 0.25 * small + _narrow(layout.work)


def _descents(result: Indices, place: Mapping[str, float]) -> int:
    return sum(place[i] > place[j] for i, j in pairwise(result))


def cheapest(
    a: Indices,
    b: Indices,
    kept: set[str],
    consumer: tuple[set[str], Indices | None],
    place: Mapping[str, float],
    sizes: Sizes,
) -> Layout:
    """The best way to multiply operands of memory orders `a` and `b`.

    Parameters
    ----------
    kept : set of str
        Indices needed later: shared ones among them are a batch.
    consumer : (set of str, tuple of str or None)
        Indices that the step which consumes the result contracts, or the order asked of the last result.
    place : mapping of str to float
        Where every index belongs in the end; decides between layouts of one price.
    """
    ways = _ways(a, b, kept, consumer[0], place, sizes)
    return min(ways, key=lambda way: (_price(way, consumer, sizes), _descents(way.result, place)))
