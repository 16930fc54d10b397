"""Costed plans: every way to run a factorized layer, and the cheapest on a device.

A linear map may absorb its cores into the input one after another, merge some cores first, or rebuild the weight; an
embedding gathers rows of its cores. All of them are contraction trees, priced by `tnc.cost`; convolutions are planned
in `tnc.splits`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from math import prod
from typing import NamedTuple

from tnc.cost import Device, seconds
from tnc.network import Network
from tnc.paths import find
from tnc.plans import Indices, Plan, plan

__all__ = ["Choice", "Rows", "linear", "multiplications", "rows", "sequential"]

_MOST = 5
"""Up to so many operands all trees are priced; above, opt_einsum's and the sequential ones."""

Path = tuple[tuple[int, int], ...]


class Choice(NamedTuple):
    """A plan and its price in seconds."""

    plan: Plan
    seconds: float


@lru_cache(maxsize=16)
def _trees(n: int) -> tuple[Path, ...]:
    """All contraction orders of `n` operands, as opt_einsum writes paths, each tree once."""

    def grow(held: tuple[frozenset[int], ...]) -> Iterator[tuple[frozenset[frozenset[int]], Path]]:
        if len(held) == 1:
            yield frozenset(), ()
            return
        for i, j in combinations(range(len(held)), 2):
            merged = held[i] | held[j]
            rest = tuple(x for k, x in enumerate(held) if k not in (i, j))
            for nodes, path in grow((*rest, merged)):
                yield nodes | {merged}, ((i, j), *path)

    found: dict[frozenset[frozenset[int]], Path] = {}
    for nodes, path in grow(tuple(frozenset([k]) for k in range(n))):
        found.setdefault(nodes, path)
    return tuple(found.values())


def sequential(n: int) -> Iterator[Path]:
    """The first operand takes in the others from the left, or from the right."""
    yield ((0, 1), *((0, n - k - 1) for k in range(1, n - 1)))
    yield ((0, n - 1), *((n - k - 2, n - k - 1) for k in range(1, n - 1)))


def multiplications(operands: Sequence[Indices], output: Indices, size: dict[str, int], path: Path) -> int:
    """Multiplications of a contraction in this order."""
    held, total = [set(core) for core in operands], 0
    for i, j in path:
        union = held[i] | held[j]
        rest = [core for k, core in enumerate(held) if k not in (i, j)]
        total += prod(size[n] for n in union)
        held = [*rest, union & set(output).union(*rest)]
    return total


def _last(path: Path, n: int) -> bool:
    """Whether the first operand (the input) joins in the last step: all cores are merged before."""
    place = 0
    for count, (i, j) in enumerate(path):
        if place in (i, j):
            return count == n - 2
        place -= (i < place) + (j < place)
    return True


def _candidates(operands: tuple[Indices, ...], output: Indices, size: dict[str, int], late: bool) -> list[Path]:
    """Trees worth planning, in which the input joins last or earlier."""
    n = len(operands)
    if n <= _MOST:
        found = [path for path in _trees(n) if _last(path, n) == late]
        return sorted(found, key=lambda path: multiplications(operands, output, size, path))[:6]
    if not late:
        return [*sequential(n)]
    return []


def _cheapest(
    operands: tuple[Indices, ...], output: Indices, size: dict[str, int], late: bool, device: Device, training: bool
) -> Choice | None:
    sizes = tuple(size.items())
    plans = [plan(operands, output, sizes, "auto", path) for path in _candidates(operands, output, size, late)]
    if not late and len(operands) > _MOST:  # "auto" looks for small intermediates first, "dp" for few multiplications
        plans += [plan(operands, output, sizes, optimize) for optimize in ("auto", "dp")]
    if late and not plans:
        inner = tuple(sorted({i for core in operands[1:] for i in core} & ({*operands[0], *output} - {"*"})))
        plans.append(_after(operands, output, sizes, inner))
    priced = [Choice(p, seconds(p, device, training=training)) for p in plans]
    return min(priced, key=lambda choice: choice.seconds, default=None)


def _after(operands: tuple[Indices, ...], output: Indices, sizes: tuple[tuple[str, int], ...], inner: Indices) -> Plan:
    """Rebuild by opt_einsum's order, then multiply the input."""
    pairs = find(operands[1:], inner, dict(sizes))
    shifted = tuple((i + 1, j + 1) for i, j in pairs)
    return plan(operands, output, sizes, "auto", (*shifted, (0, 1)))


@lru_cache(maxsize=4096)
def linear(network: Network, batch: int, device: Device, training: bool = False) -> tuple[Choice | None, Choice | None]:
    """The cheapest plans for ``* n.. , cores -> * m..``: through the cores, and through the rebuilt weight.

    The first is None for a network of one core.
    """
    rows = network.axes[0]
    columns = network.outer[len(rows) :]
    operands = (("*", *columns), *network.operands)
    size = {"*": batch, **network.sizes}
    through, rebuilt = (_cheapest(operands, ("*", *rows), size, late, device, training) for late in (False, True))
    return through, rebuilt


class Rows(NamedTuple):
    """Looking up rows of a weight: merge groups of cores, gather along their row indices, contract the rest.

    Attributes
    ----------
    groups : tuple of (tuple of int, Plan)
        Cores of a group and the plan that merges them, row indices first.
    digits : tuple of tuple of (int, int)
        For every group the (stride, size) of its row indices in the row number, most significant first.
    last : Plan
        Contracts the gathered groups to ``(batch, columns)``.
    seconds : float
    """

    groups: tuple[tuple[tuple[int, ...], Plan], ...]
    digits: tuple[tuple[tuple[int, int], ...], ...]
    last: Plan
    seconds: float


@lru_cache(maxsize=4096)
def rows(network: Network, batch: int, device: Device) -> Rows:
    """The cheapest way to look up `batch` rows: neighbouring cores may be merged before they are gathered."""
    n = len(network.operands)
    cuts = product((False, True), repeat=n - 1) if n <= _MOST + 1 else [(True,) * (n - 1)]
    found = []
    for cut in cuts:
        ends = [k + 1 for k, there in enumerate(cut) if there]
        spans = zip([0, *ends], [*ends, n], strict=True)
        found.append(_rows(network, [tuple(range(a, b)) for a, b in spans], batch, device))
    return min(found, key=lambda made: made.seconds)


def _rows(network: Network, groups: Sequence[tuple[int, ...]], batch: int, device: Device) -> Rows:
    lead, sizes = network.axes[0], dict(network.sizes)
    columns = network.outer[len(lead) :]
    stride = {i: prod(sizes[j] for j in lead[k + 1 :]) for k, i in enumerate(lead)}
    merged, digits, operands, total = [], [], [], 0.0
    for group in groups:
        own = [network.operands[k] for k in group]
        needed = {i for k, core in enumerate(network.operands) if k not in group for i in core} | set(network.outer)
        names = [i for i in dict.fromkeys(i for core in own for i in core) if i in needed]
        mine, rest = [i for i in names if i in lead], [i for i in names if i not in lead]
        used = {i for core in own for i in core}
        merge = plan(tuple(own), (*mine, *rest), tuple((i, m) for i, m in sizes.items() if i in used))
        merged.append((group, merge))
        digits.append(tuple((stride[i], sizes[i]) for i in mine))
        operands.append(("*", *rest) if mine else tuple(rest))
        gathered = 2 * 4 * batch * prod(sizes[i] for i in rest) / device.bytes if mine else 0.0
        total += seconds(merge, device) + gathered + device.call
    used = {i for core in operands for i in core} - {"*"}
    last = plan(tuple(operands), ("*", *columns), (("*", batch), *((i, m) for i, m in sizes.items() if i in used)))
    return Rows(tuple(merged), tuple(digits), last, total + seconds(last, device))
