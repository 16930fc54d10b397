"""Contraction plans: a pure, cached `plan` made from index names and sizes, and a short `run` on any library.

The order of contractions comes from `tnc.paths` or from the caller. Each pair becomes one matrix product, laid
out with an eye on the step that consumes its result: large arrays are viewed, only small ones copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from tnc.errors import PatternError
from tnc.layouts import DYNAMIC, View, cheapest, count, operand, scatter, view
from tnc.paths import Indices, find, ranking, sweep
from tnc.typing import Array, Namespace, Shape

__all__ = [
    "DYNAMIC",
    "Indices",
    "Plan",
    "Step",
    "View",
    "Work",
    "contract",
    "dynamic",
    "extents",
    "look",
    "outcome",
    "plan",
    "product",
    "run",
    "turned",
]


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
    """What a step costs: so many products of (m, k) by (k, n), and entries copied to lay them out.

    Copies of short runs are slower, as if `slow` more entries were copied.
    """

    many: int
    m: int
    n: int
    k: int
    copied: int
    slow: int = 0


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

    @cached_property
    def links(self) -> tuple[tuple[int, int], ...]:
        """The two values that each step multiplies: operands are numbered first, then results."""
        held, found = list(range(len(self.steps) + 1)), []
        for new, step in enumerate(self.steps, len(held)):
            found.append((held[step.left], held[step.right]))
            held = [k for i, k in enumerate(held) if i not in (step.left, step.right)] + [new]
        return tuple(found)

    @cached_property
    def known(self) -> dict[Shape, Plan]:
        """The plan by sizes of its dynamic indices: what `tnc.nn.alone` made."""
        return {}

    @property
    def moved(self) -> int:
        """Entries read and written, those of permutations that copy included."""
        left = [w.m * w.k * (1 if step.spread else w.many) for step, w in zip(self.steps, self.work, strict=False)]
        return sum(left) + sum(w.many * (w.k + w.m) * w.n + 2 * w.copied for w in self.work)


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
    swept = sweep(operands, output, size) if path is None and optimize == "auto" and len(operands) > 2 else None
    if path is None:
        path = tuple(pair for pair, _ in swept) if swept else tuple(find(operands, output, size, optimize))
    consumers = _consumers(operands, output, path)
    for t, (_, order) in enumerate(swept or ()):
        consumers[t] = consumers[t] if order is None else (set(), order)
    held, steps, work, flops, peak = list(operands), [], [], 0, 0
    place = ranking(operands, output)
    forms: list[Sequence[Indices]] = [[(i,) for i in core] for core in operands]
    for (i, j), consumer in zip(path, consumers, strict=True):
        rest = [core for k, core in enumerate(held) if k not in (i, j)]
        kept = set(output).union(*rest)
        best = cheapest(held[i], held[j], kept, consumer, place, size)
        i, j = (j, i) if best.swap else (i, j)
        left, right = (operand(held[k], forms[k], groups, size) for k, groups in ((i, best.left), (j, best.right)))
        steps.append(Step(i, j, left, right, best.spread))
        work.append(Work(*best.work, best.copied, best.slow))
        flops += 2 * prod(best.work)
        peak = max(peak, count(best.result, size))
        forms = [form for k, form in enumerate(forms) if k not in (i, j)] + [best.form]
        held = [*rest, best.result]
    final = view(held[0], forms[0], [(n,) for n in output], size)
    copied = (0, 0) if held[0] == output else (count(output, size), scatter(held[0], output, size))
    work.append(Work(0, 0, 0, 0, *copied))
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


_STATIC: Mapping[str, Any] = {}


def extents(shape: tuple[Any, ...], dims: Mapping[str, Any]) -> tuple[Any, ...]:
    """A shape with the sizes of dynamic indices filled in."""
    if not dims:
        return shape
    return tuple(
        e if isinstance(e, int) else e.factor * dims[e.names[0]] * (dims[e.names[1]] if len(e.names) > 1 else 1)
        for e in shape
    )


def dynamic(plan: Plan, arrays: Sequence[Array]) -> dict[str, Any]:
    """Sizes of the plan's dynamic indices, read off its operands."""
    return {name: arrays[k].shape[axis] for name, k, axis in plan.where}


def look(x: Array, view: View, xp: Namespace, dims: Mapping[str, Any] = _STATIC) -> Array:
    """Reshape, permute, reshape; the turn is `turned`'s."""
    if view.split is not None:
        x = xp.reshape(x, extents(view.split, dims))
    if view.order is not None:
        x = xp.permute_dims(x, view.order)
    return x if view.merge is None else xp.reshape(x, extents(view.merge, dims))


def turned(x: Array, turn: bool, xp: Namespace) -> Array:
    """Turn the last two axes, or do not."""
    return xp.matrix_transpose(x) if turn else x


def product(step: Step, left: Array, right: Array, xp: Namespace) -> Array:
    """The product of two operands that were looked at."""
    a, b = turned(left, step.left_view.turn, xp), turned(right, step.right_view.turn, xp)
    return xp.matmul(xp.broadcast_to(a, (b.shape[0], *a.shape)) if step.spread else a, b)


def outcome(step: Step, left: Shape, right: Shape) -> Shape:
    """The shape of a product, of those of its operands when looked at."""
    rows, columns = left[-1 if step.left_view.turn else -2], right[-2 if step.right_view.turn else -1]
    return (*(right if step.spread else left)[:-2], rows, columns)


def run(plan: Plan, arrays: Sequence[Array], xp: Namespace | None = None) -> Array:
    """Run a plan: permute, reshape and multiply, on the arrays' own library and device."""
    xp = array_namespace(*arrays) if xp is None else xp
    dims = dynamic(plan, arrays)
    held = list(arrays)
    for step in plan.steps:
        left, right = held[step.left], held[step.right]
        held = [x for k, x in enumerate(held) if k not in (step.left, step.right)]
        held.append(product(step, look(left, step.left_view, xp, dims), look(right, step.right_view, xp, dims), xp))
    return look(held[0], plan.final, xp, dims)


def contract(operands: Sequence[Indices], output: Indices, arrays: Sequence[Array]) -> Array:
    """Plan and run at once, sizes read off the arrays."""
    sizes = {n: s for core, x in zip(operands, arrays, strict=True) for n, s in zip(core, x.shape, strict=True)}
    return run(plan(tuple(map(tuple, operands)), tuple(output), tuple(sizes.items())), arrays)
