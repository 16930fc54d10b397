"""How two arrays become one matrix product: views of both, and the order of the result's indices.

Every way to multiply a pair is listed with what it copies; the plan takes the cheapest, with an eye on the step that
consumes the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

from tnc.paths import Indices

__all__ = ["DYNAMIC", "Dim", "Layout", "View", "cheapest", "count", "view"]

Sizes = Mapping[str, int]

DYNAMIC = ("*", ".")
"""Indices whose size is read off the arrays at run time: the batch, and the positions of a feature map."""


class Dim(NamedTuple):
    """A merged axis with dynamic indices: their sizes times a constant."""

    factor: int
    names: Indices


@dataclass(frozen=True)
class View:
    """Reshape, permute, reshape: each part is None where it would change nothing."""

    split: tuple[Any, ...] | None = None
    order: tuple[int, ...] | None = None
    merge: tuple[Any, ...] | None = None


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


def _grouped(names: Sequence[str], first: set[str]) -> Indices:
    return tuple(i for i in names if i in first) + tuple(i for i in names if i not in first)


class Layout(NamedTuple):
    """One way to multiply a pair, and the order of the indices it yields."""

    copied: int
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


def _copy(memory: Indices, groups: Sequence[Indices], sizes: Sizes) -> int:
    """Entries copied to multiply `memory` as `groups`: none if each group is in one piece and one has unit stride."""
    pieces = len(_runs(memory, groups)) == sum(bool(group) for group in groups)
    return 0 if pieces and (not memory or any(memory[-1] in g for g in groups[-2:])) else count(memory, sizes)


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
            copied = _copy(x, groups[0], sizes) + _copy(y, groups[1], sizes)
            work = (n_batch, count(left, sizes), count(right, sizes), count(inner, sizes))
            yield Layout(copied, bool(swap), *groups, (*lead, left, right), False, work)
        if batch:
            continue
        for inner, left, (loop, tail) in product(inners, orders[0], _halves(y, columns, wanted)):
            groups = ((left, inner), (tuple(loop), inner, tuple(tail)))
            copied = _copy(x, groups[0], sizes) + _copy(y, groups[1], sizes)
            work = (count(loop, sizes), count(left, sizes), count(tail, sizes), count(inner, sizes))
            yield Layout(copied, bool(swap), *groups, (tuple(loop), left, tuple(tail)), True, work)


def _halves(memory: Indices, free: Indices, wanted: set[str]) -> set[tuple[Indices, Indices]]:
    """Ways to part free indices into those looped over and those multiplied at once."""
    outside, inside = (tuple(i for i in free if (i in wanted) is side) for side in (True, False))
    at = next((k for k, i in enumerate(memory) if i not in free), 0)  # where the contracted indices stand
    before, after = (tuple(i for i in part if i in free) for part in (memory[:at], memory[at:]))
    return {pair for pair in ((outside, inside), (inside, outside), (before, after)) if all(pair)}


def _scattered(result: Indices, wanted: set[str], final: Indices | None) -> bool:
    """Whether the consumer of a result must copy it: its indices are out of order, or `wanted` in pieces."""
    if final is not None:
        return result != final
    marks = [i in wanted for i in result]
    return sum(p != q for p, q in pairwise(marks)) > 1


def _price(layout: Layout, consumer: tuple[set[str], Indices | None], sizes: Sizes) -> float:
    """Entries moved, roughly; many small products count as moving their operands once more."""
    many, m, n, k = layout.work
    again = 2 * many * m * n if _scattered(layout.result, *consumer) else 0
    small = many * (m * k + k * n + 1024) if many > 1 else 0
    return 2 * layout.copied + again + 0.25 * small


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
