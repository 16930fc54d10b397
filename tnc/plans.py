"""Contraction plans: a pure, cached `plan` made from shapes once, and a short `run` on any array library.

The order of pairwise contractions comes from `tnc.paths`; every pair becomes one (batched) matrix product, laid
out so that large operands are not copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from array_api_compat import array_namespace

from tnc.errors import PatternError
from tnc.paths import Indices, find, ranking
from tnc.typing import Array, Namespace, Shape

__all__ = ["Plan", "Step", "View", "contract", "look", "plan", "run"]

_EARLY = 4
"""An operand this many times smaller than the result may be permuted to lay the result out."""


@dataclass(frozen=True)
class View:
    """Reshape, permute, reshape: each part is None where it would change nothing."""

    split: Shape | None
    order: Shape | None
    merge: Shape | None

    @property
    def copies(self) -> bool:
        """Whether memory moves: a matrix product takes transposed matrices as they lie, but no strided ones."""
        return self.order is not None and (self.merge is not None or self.order[:-2] == (2,))


@dataclass(frozen=True)
class Step:
    """One pairwise contraction: view both operands as (batched) matrices, multiply, append the result of `entries`."""

    left: int
    right: int
    left_view: View
    right_view: View
    entries: int


@dataclass(frozen=True)
class Plan:
    """A contraction, ready to run: made from index names and sizes only.

    Attributes
    ----------
    steps : tuple of Step
        Pairwise contractions; each takes two operands off the list and appends one.
    final : View
        Brings the last result into the order asked for.
    flops : int
        Multiplications and additions of all steps.
    peak : int
        Entries of the largest intermediate.
    moved : int
        Entries read and written, those of permutations that copy included.
    """

    steps: tuple[Step, ...]
    final: View
    flops: int
    peak: int
    moved: int = 0


def _shape(groups: Sequence[Sequence[str]], sizes: Mapping[str, int]) -> Shape:
    """Merged sizes; the group with the batch is -1, so that one plan serves every batch size."""
    return tuple(-1 if "*" in g else prod(sizes[i] for i in g) for g in groups)


def _view(source: Indices, groups: Sequence[Indices], sizes: Mapping[str, int]) -> View:
    """View an array of indices `source` with the axes `groups`, permuting as few axes as possible."""
    target = [i for group in groups for i in group]
    place = {name: k for k, name in enumerate(source)}
    runs: list[list[str]] = []  # neighbours before and after move as one axis
    for name in target:
        if runs and place[runs[-1][-1]] + 1 == place[name]:
            runs[-1].append(name)
        else:
            runs.append([name])
    before = sorted(runs, key=lambda run: place[run[0]])
    order = tuple(before.index(run) for run in runs)
    merge = _shape(groups, sizes)
    if order == tuple(range(len(order))):
        return View(None, None, merge)
    return View(_shape(before, sizes), order, None if [list(g) for g in groups] == runs else merge)


def _pair(
    a: Indices, b: Indices, kept: set[str], sizes: Mapping[str, int], place: Mapping[str, float]
) -> tuple[View, View, Indices]:
    """Views of the two operands as (batch, rows, inner) and (batch, inner, columns), and the result's indices."""
    larger = a if prod(sizes[i] for i in a) >= prod(sizes[i] for i in b) else b
    shared = [i for i in larger if i in a and i in b]
    batch = tuple(i for i in shared if i in kept)
    inner = tuple(i for i in shared if i not in kept)
    free = [tuple(i for i in core if i not in shared) for core in (a, b)]
    total = prod(sizes[i] for i in (*batch, *free[0], *free[1]))
    for k, core in enumerate((a, b)):  # permuting early, where arrays are small, saves it at the end
        if _EARLY * prod(sizes[i] for i in core) <= total:
            free[k] = tuple(sorted(free[k], key=place.__getitem__))
    lead = (batch,) if batch else ()
    left, right = _view(a, (*lead, free[0], inner), sizes), _view(b, (*lead, inner, free[1]), sizes)
    return left, right, (*batch, *free[0], *free[1])


def _in_place(small: Indices, big: Indices, result: Indices, sizes: Mapping[str, int]) -> tuple[bool, View, View]:
    """Views that multiply neighbouring indices of `big` where they stand, and whether `big` is the left factor."""
    inner = tuple(i for i in big if i in small)
    new = tuple(i for i in result if i not in big)
    at = big.index(inner[0])
    before, after = big[:at], big[at + len(inner) :]
    if not after:
        return True, _view(big, (before, inner), sizes), _view(small, (inner, new), sizes)
    lead = (before,) if before else ()
    left = _view(small, ((), new, inner) if before else (new, inner), sizes)
    return False, left, _view(big, (*lead, inner, after), sizes)


def _leads(core: Indices, output: Indices) -> bool:
    """Whether the first index of the output is the first of the core's that stand there."""
    return output[:1] == tuple(i for i in core if i in output)[:1]


@lru_cache(maxsize=4096)
def plan(
    operands: tuple[Indices, ...], output: Indices, sizes: tuple[tuple[str, int], ...], optimize: str = "auto"
) -> Plan:
    """Plan the contraction of `operands` (their index names) to `output`.

    Parameters
    ----------
    operands : tuple of tuple of str
        Index names of every array. An index of several operands that also stands in `output` is a batch.
    output : tuple of str
        Index names of the result; every other index is summed over.
    sizes : tuple of (str, int)
        Size of every index. The size of ``*`` guides the order only: a plan runs at any batch size.
    optimize : str
        Path optimizer of opt_einsum: ``auto``, ``optimal``, ``dp``, ``greedy``, ...

    Raises
    ------
    PatternError
        An index stands in one operand only and not in the output.
    """
    size = dict(sizes)
    held = list(operands)
    for name in size:
        if name not in output and sum(name in core for core in held) == 1:
            raise PatternError(f"index {name!r} stands in one operand only and not in the output {output}")

    def entries(names: Iterable[str]) -> int:
        return prod(size[name] for name in names)

    place, steps, flops, peak, moved = ranking(operands, output), [], 0, 0, 0
    for i, j, result in find(operands, output, size, optimize):
        a, b = held[i], held[j]
        rest = [core for k, core in enumerate(held) if k not in (i, j)]
        if result is not None:
            swap, left, right = _in_place(a, b, result, size)
        else:
            swap = _leads(b, output) and not _leads(a, output)  # saves the last transposition where possible
        if swap:
            i, j, a, b = j, i, b, a
        if result is None:
            left, right, result = _pair(a, b, set(output).union(*rest), size, place)
        steps.append(Step(i, j, left, right, entries(result)))
        flops += 2 * entries({*a, *b})
        peak = max(peak, entries(result))
        moved += entries(result) + sum((1 + 2 * v.copies) * entries(n) for v, n in ((left, a), (right, b)))
        held = [*rest, result]
    final = _view(held[0], tuple((n,) for n in output), size)
    moved += 2 * (final.order is not None) * entries(output)
    return Plan(tuple(steps), final, flops, peak, moved)


def look(x: Array, view: View, xp: Namespace) -> Array:
    """Reshape, permute, reshape."""
    if view.split is not None:
        x = xp.reshape(x, view.split)
    if view.order is not None:
        x = xp.permute_dims(x, view.order)
    return x if view.merge is None else xp.reshape(x, view.merge)


def run(plan: Plan, arrays: Sequence[Array], xp: Namespace | None = None) -> Array:
    """Run a plan: permute, reshape and multiply, on the arrays' own library and device."""
    xp = array_namespace(*arrays) if xp is None else xp
    held = list(arrays)
    for step in plan.steps:
        left, right = held[step.left], held[step.right]
        product = xp.matmul(look(left, step.left_view, xp), look(right, step.right_view, xp))
        held = [x for k, x in enumerate(held) if k not in (step.left, step.right)] + [product]
    return look(held[0], plan.final, xp)


def contract(operands: Sequence[Indices], output: Indices, arrays: Sequence[Array]) -> Array:
    """Plan and run at once, sizes read off the arrays."""
    sizes = {n: s for core, x in zip(operands, arrays, strict=True) for n, s in zip(core, x.shape, strict=True)}
    return run(plan(tuple(map(tuple, operands)), tuple(output), tuple(sizes.items())), arrays)
