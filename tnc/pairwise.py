"""Pairwise contraction: a pure, cached `plan` made from index names and sizes, and a short `run` on any library.

The order of contractions comes from opt_einsum or from the caller. Each pair becomes one matrix product, laid
out with an eye on the step that consumes its result: large arrays are viewed, only small ones copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

import opt_einsum
from array_api_compat import array_namespace

from tnc.errors import PatternError
from tnc.typing import Array, Namespace

__all__ = ["DYNAMIC", "Indices", "Plan", "Work", "path_of", "plan", "run"]

Indices = tuple[str, ...]
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


@dataclass(frozen=True)
class Step:
    """One pairwise contraction: view both operands, multiply, append the result.

    Where `spread` is set, the left operand is a single matrix that multiplies each matrix of the right one.
    """

    left: int
    right: int
    left_view: View
    right_view: View
    spread: bool


class Work(NamedTuple):
    """What a step costs: so many products of (m, k) by (k, n), and entries copied to lay them out."""

    count: int
    m: int
    n: int
    k: int
    copied: int


@dataclass(frozen=True)
class Plan:
    """A contraction, ready to run.

    Attributes
    ----------
    steps : tuple of Step
        Each takes two operands off the list and appends one.
    final : View
        Brings the last result into the order asked for.
    where : tuple of (str, int, int)
        Dynamic indices: operand and axis to read their size from.
    work : tuple of Work
        Costs at the sizes planned for; the last entry is the final view's copy.
    flops, peak : int
        Multiplications and additions of all steps; entries of the largest intermediate.
    """

    steps: tuple[Step, ...]
    final: View
    where: tuple[tuple[str, int, int], ...]
    work: tuple[Work, ...]
    flops: int
    peak: int


def _merged(groups: Sequence[Sequence[str]], sizes: Sizes) -> tuple[Any, ...]:
    def one(group: Sequence[str]) -> Any:
        moving = tuple(i for i in group if i in DYNAMIC)
        factor = prod(sizes[i] for i in group if i not in DYNAMIC)
        return Dim(factor, moving) if moving else factor

    return tuple(one(group) for group in groups)


def _runs(source: Indices, groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Neighbours in `source` that stay neighbours in `groups`: they move as one axis."""
    place, runs = {name: k for k, name in enumerate(source)}, []
    for group in groups:
        for k, name in enumerate(group):
            if k and place[runs[-1][-1]] + 1 == place[name]:
                runs[-1].append(name)
            else:
                runs.append([name])
    return runs


def _view(source: Indices, form: Sequence[Indices], groups: Sequence[Indices], sizes: Sizes) -> View:
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


class _Layout(NamedTuple):
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


def _size(names: Sequence[str], sizes: Sizes) -> int:
    return prod(sizes[i] for i in names)


def _copy(memory: Indices, groups: Sequence[Indices], sizes: Sizes) -> int:
    """Entries copied to multiply `memory` as `groups`: none if each group is in one piece and one has unit stride."""
    pieces = len(_runs(memory, groups)) == sum(bool(group) for group in groups)
    return 0 if pieces and (not memory or any(memory[-1] in g for g in groups[-2:])) else _size(memory, sizes)


def _layouts(a: Indices, b: Indices, kept: set[str], wanted: set[str], sizes: Sizes) -> Iterator[_Layout]:
    """Ways to multiply operands of memory orders `a` and `b`; `wanted` indices should stay together."""
    for swap, (x, y) in enumerate(((a, b), (b, a))):
        shared = [i for i in x if i in y]
        batch = tuple(i for i in shared if i in kept)
        rows, columns = (tuple(i for i in z if i not in shared) for z in (x, y))
        inners = {tuple(i for i in z if i in shared and i not in batch) for z in (x, y)}
        lead = (batch,) if batch else ()
        n_batch = _size(batch, sizes)
        orders = (
            {rows, _grouped(rows, wanted), _grouped(rows, set(rows) - wanted)},
            {columns, _grouped(columns, wanted), _grouped(columns, set(columns) - wanted)},
        )
        for inner, left, right in product(inners, *orders):
            groups = ((*lead, left, inner), (*lead, inner, right))
            copied = _copy(x, groups[0], sizes) + _copy(y, groups[1], sizes)
            work = (n_batch, _size(left, sizes), _size(right, sizes), _size(inner, sizes))
            yield _Layout(copied, bool(swap), *groups, (*lead, left, right), False, work)
        if batch:
            continue
        for inner, left, (loop, tail) in product(inners, orders[0], _halves(y, columns, wanted)):
            groups = ((left, inner), (tuple(loop), inner, tuple(tail)))
            copied = _copy(x, groups[0], sizes) + _copy(y, groups[1], sizes)
            work = (_size(loop, sizes), _size(left, sizes), _size(tail, sizes), _size(inner, sizes))
            yield _Layout(copied, bool(swap), *groups, (tuple(loop), left, tuple(tail)), True, work)


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


def _price(layout: _Layout, consumer: tuple[set[str], Indices | None], sizes: Sizes) -> float:
    """Entries moved, roughly; many small products count as moving their operands once more."""
    count, m, n, k = layout.work
    again = 2 * count * m * n if _scattered(layout.result, *consumer) else 0
    small = count * (m * k + k * n + 1024) if count > 1 else 0
    return 2 * layout.copied + again + 0.25 * small


@lru_cache(maxsize=4096)
def plan(
    operands: tuple[Indices, ...],
    output: Indices,
    sizes: tuple[tuple[str, int], ...],
    optimize: str = "auto",
    path: tuple[tuple[int, int], ...] | None = None,
) -> Plan:
    """Plan the contraction of `operands` (their index names) to `output`.

    Parameters
    ----------
    operands : tuple of tuple of str
        Index names of every array. An index of several operands that also stands in `output` is a batch.
    output : tuple of str
        Index names of the result; every other index is summed over.
    sizes : tuple of (str, int)
        Size of every index. Those of `DYNAMIC` indices guide the order only: a plan runs at any.
    optimize : str
        Path optimizer of opt_einsum: ``auto``, ``optimal``, ``dp``, ``greedy``, ...
    path : tuple of (int, int), optional
        The order itself, as opt_einsum writes it.

    Raises
    ------
    PatternError
        An index stands in one operand only and not in the output.
    """
    size = dict(sizes)
    for name in size:
        if name not in output and sum(name in core for core in operands) == 1:
            raise PatternError(f"index {name!r} stands in one operand only and not in the output {output}")
    pairs = path_of(operands, output, size, optimize) if path is None else path
    consumers = _consumers(operands, output, pairs)
    held, steps, work, flops, peak = list(operands), [], [], 0, 0
    forms: list[Sequence[Indices]] = [[(i,) for i in core] for core in operands]
    for (i, j), consumer in zip(pairs, consumers, strict=True):
        rest = [core for k, core in enumerate(held) if k not in (i, j)]
        kept = set(output).union(*rest)
        best = min(_layouts(held[i], held[j], kept, consumer[0], size), key=lambda c: _price(c, consumer, size))
        i, j = (j, i) if best.swap else (i, j)
        left, right = (_view(held[k], forms[k], groups, size) for k, groups in ((i, best.left), (j, best.right)))
        steps.append(Step(i, j, left, right, best.spread))
        work.append(Work(*best.work, best.copied))
        flops += 2 * prod(best.work)
        peak = max(peak, _size(best.result, size))
        forms = [form for k, form in enumerate(forms) if k not in (i, j)] + [best.form]
        held = [*rest, best.result]
    final = _view(held[0], forms[0], [(n,) for n in output], size)
    work.append(Work(0, 0, 0, 0, 0 if held[0] == output else _size(output, size)))
    where = tuple((n, *next((k, c.index(n)) for k, c in enumerate(operands) if n in c)) for n in DYNAMIC if n in size)
    return Plan(tuple(steps), final, where, tuple(work), flops, peak)


def _consumers(
    operands: tuple[Indices, ...], output: Indices, pairs: Sequence[tuple[int, int]]
) -> list[tuple[set[str], Indices | None]]:
    """For every step: the indices of its result that its consumer contracts, or the output's order at the end."""
    held: list[tuple[set[str], int]] = [(set(core), -1) for core in operands]
    wanted: list[tuple[set[str], Indices | None]] = [(set(), None)] * len(pairs)
    for t, (i, j) in enumerate(pairs):
        (a, s), (b, u) = held[i], held[j]
        rest = [pair for k, pair in enumerate(held) if k not in (i, j)]
        kept = set(output).union(*(names for names, _ in rest))
        for source in (s, u):
            if source >= 0:
                wanted[source] = ((a & b) - kept, None)
        held = [*rest, ((a | b) & kept, t)]
    if pairs:
        wanted[-1] = (set(), output)
    return wanted


def path_of(
    operands: tuple[Indices, ...], output: Indices, size: Sizes, optimize: str = "auto"
) -> Sequence[tuple[int, int]]:
    """Opt_einsum's order of contractions."""
    if len(operands) < 3:
        return [(0, 1)] * (len(operands) - 1)
    symbol = {name: opt_einsum.get_symbol(k) for k, name in enumerate(size)}
    spell = ["".join(symbol[i] for i in core) for core in (*operands, output)]
    equation = ",".join(spell[:-1]) + "->" + spell[-1]
    shapes = [tuple(size[i] for i in core) for core in operands]
    found, _ = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    return [(int(pair[0]), int(pair[1])) for pair in found if len(pair) == 2]


def _sizes(shape: tuple[Any, ...], dims: dict[str, Any]) -> tuple[Any, ...]:
    if not dims:
        return shape
    return tuple(
        e if isinstance(e, int) else e.factor * dims[e.names[0]] * (dims[e.names[1]] if len(e.names) > 1 else 1)
        for e in shape
    )


def _look(x: Array, view: View, dims: dict[str, Any], xp: Namespace) -> Array:
    if view.split is not None:
        x = xp.reshape(x, _sizes(view.split, dims))
    if view.order is not None:
        x = xp.permute_dims(x, view.order)
    return x if view.merge is None else xp.reshape(x, _sizes(view.merge, dims))


def run(plan: Plan, arrays: Sequence[Array], xp: Namespace | None = None) -> Array:
    """Run a plan: permute, reshape and multiply, on the arrays' own library and device."""
    xp = array_namespace(*arrays) if xp is None else xp
    dims = {name: arrays[k].shape[axis] for name, k, axis in plan.where}
    held = list(arrays)
    for step in plan.steps:
        left = _look(held[step.left], step.left_view, dims, xp)
        right = _look(held[step.right], step.right_view, dims, xp)
        if step.spread:
            left = xp.broadcast_to(left, (right.shape[0], *left.shape))
        result = xp.matmul(left, right)
        held = [x for k, x in enumerate(held) if k not in (step.left, step.right)] + [result]
    return _look(held[0], plan.final, dims, xp)
