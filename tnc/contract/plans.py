"""Contraction plans: `plan` needs index names and sizes only, is cached, and fits arrays of any library.

The order of contractions comes from `tnc.contract.order` or from the caller. Each pair of operands becomes one matrix
product. The layout of a result suits the step that uses it: large arrays are viewed, and only small ones are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from tnc.contract.layout import DYNAMIC, Consumer, View, cheapest, count, operand, scatter, view
from tnc.contract.order import Indices, Pair, find_with_layouts, ranking
from tnc.errors import PatternError
from tnc.typing import Shape

__all__ = ["Plan", "Step", "Work", "plan"]


@dataclass(frozen=True)
class Step:
    """One contraction of two operands: view both as matrices, multiply, and append the result to the list.

    Attributes
    ----------
    left, right : int
        Positions of the operands in the list of arrays that are left.
    left_view, right_view : View
        How to view the operands as matrices: (many, m, k) and (many, k, n), or (m, k) and (k, n).
    spread : bool
        Whether the left operand is a single (m, k) matrix that multiplies each of the right operand's matrices.
    """

    left: int
    right: int
    left_view: View
    right_view: View
    spread: bool


class Work(NamedTuple):
    """What a step costs: `many` products of (m, k) by (k, n), and `copied` entries to lay out the operands.

    Copies of short runs are slower. They cost as if `slow` more entries were copied.
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
        Each step takes two operands off the list and appends their product.
    final : View
        Brings the last result into the order of the output.
    where : tuple of (str, int, int)
        For each dynamic index: its name, and the operand and the axis whose size is read at run time.
    work : tuple of Work
        The cost of every step at the sizes planned for. The last entry is the copy of the final view.
    flops : int
        Multiplications and additions of all steps.
    peak : int
        Entries of the largest intermediate.
    """

    steps: tuple[Step, ...]
    final: View
    where: tuple[tuple[str, int, int], ...]
    work: tuple[Work, ...]
    flops: int
    peak: int

    links: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    """The two values that each step multiplies. The operands are numbered first, then the results of the steps."""

    def __post_init__(self) -> None:
        held = list(range(len(self.steps) + 1))
        links = []
        for result, step in enumerate(self.steps, len(held)):
            links.append((held[step.left], held[step.right]))
            held = [number for position, number in enumerate(held) if position not in (step.left, step.right)]
            held.append(result)
        # Not a cached property: torch.compile cannot trace its first access.
        object.__setattr__(self, "links", tuple(links))

    @cached_property
    def known(self) -> dict[Shape, Plan]:
        """Plans that `tnc.contract.specialize` derived from this one, by the sizes of the dynamic indices."""
        return {}

    @property
    def moved(self) -> int:
        """Entries that are read and written, with those of copies."""
        total = 0
        for step, work in zip(self.steps, self.work, strict=False):
            total += work.m * work.k * (1 if step.spread else work.many)  # the left operand
        for work in self.work:
            total += work.many * (work.k + work.m) * work.n + 2 * work.copied  # the right operand, the result, copies
        return total


@lru_cache(maxsize=4096)
def plan(
    operands: tuple[Indices, ...],
    output: Indices,
    sizes: tuple[tuple[str, int], ...],
    optimize: str = "auto",
    path: tuple[Pair, ...] | None = None,
) -> Plan:
    """Plan the contraction of `operands` (their index names) to `output`.

    Parameters
    ----------
    operands : tuple of tuple of str
        Index names of every array. An index of several operands that is also in `output` is a batch index.
    output : tuple of str
        Index names of the result. Every other index is summed over.
    sizes : tuple of (str, int)
        Size of every index. The sizes of `DYNAMIC` indices only guide the choices: the plan runs at any size of these.
    optimize : str
        Path optimizer of opt_einsum: ``auto``, ``optimal``, ``dp``, ``greedy``, ...
    path : tuple of (int, int), optional
        The order of contractions, as opt_einsum writes it. When given, `optimize` is not used.

    Raises
    ------
    PatternError
        An index stands in one operand only and not in the output.
    """
    size = dict(sizes)
    _check_indices(operands, output, size)
    pairs, orders = find_with_layouts(operands, output, size, optimize) if path is None else (list(path), [])
    consumers = _consumers(operands, output, pairs, orders)
    position = ranking(operands, output)

    held = list(operands)  # indices of the arrays that are left, in memory order
    forms: list[Sequence[Indices]] = [[(name,) for name in core] for core in operands]  # the indices of each axis
    steps: list[Step] = []
    work: list[Work] = []
    peak = 0
    for (i, j), consumer in zip(pairs, consumers, strict=True):
        rest = [core for k, core in enumerate(held) if k not in (i, j)]
        kept = set(output).union(*rest)
        layout = cheapest(held[i], held[j], kept, consumer, position, size)
        if layout.swap:
            i, j = j, i
        left_view = operand(held[i], forms[i], layout.left, size)
        right_view = operand(held[j], forms[j], layout.right, size)
        steps.append(Step(i, j, left_view, right_view, layout.spread))
        work.append(Work(*layout.work, layout.copied, layout.slow))
        peak = max(peak, count(layout.result, size))
        forms = [form for k, form in enumerate(forms) if k not in (i, j)]
        forms.append(layout.form)
        held = [*rest, layout.result]

    final = view(held[0], forms[0], [(name,) for name in output], size)
    work.append(_final_copy(held[0], output, size))
    flops = sum(2 * w.many * w.m * w.n * w.k for w in work)
    return Plan(tuple(steps), final, _dynamic_axes(operands, size), tuple(work), flops, peak)


def _check_indices(operands: Sequence[Indices], output: Indices, size: dict[str, int]) -> None:
    """Refuse an index of one operand that is not in the output."""
    for name in size:
        if name not in output and sum(name in core for core in operands) == 1:
            raise PatternError(f"index {name!r} stands in one operand only and not in the output {output}")


def _consumers(
    operands: tuple[Indices, ...], output: Indices, pairs: Sequence[Pair], orders: Sequence[Indices | None]
) -> list[Consumer]:
    """What is asked of the result of every step.

    For most steps these are the indices that the consumer contracts. The last result must have the order of the output
    instead. A result of a sweep must have its order in `orders`.
    """
    held: list[tuple[set[str], int | None]] = [(set(core), None) for core in operands]  # indices, and source step
    consumers: list[Consumer] = [(set(), None)] * len(pairs)
    for step, (i, j) in enumerate(pairs):
        left, left_source = held[i]
        right, right_source = held[j]
        rest = [entry for k, entry in enumerate(held) if k not in (i, j)]
        kept = set(output).union(*(names for names, _ in rest))
        for source in (left_source, right_source):
            if source is not None:
                consumers[source] = ((left & right) - kept, None)
        held = [*rest, ((left | right) & kept, step)]
    if pairs:
        consumers[-1] = (set(), output)
    for step, order in enumerate(orders):
        if order is not None:
            consumers[step] = (set(), order)
    return consumers


def _final_copy(memory: Indices, output: Indices, size: dict[str, int]) -> Work:
    """The cost of bringing the last result into the order of the output."""
    if memory == output:
        return Work(0, 0, 0, 0, 0)
    return Work(0, 0, 0, 0, count(output, size), scatter(memory, output, size))


def _dynamic_axes(operands: Sequence[Indices], size: dict[str, int]) -> tuple[tuple[str, int, int], ...]:
    """For every dynamic index: its name, the first operand that has it, and the axis there."""

    def first(name: str) -> tuple[int, int]:
        return next((k, core.index(name)) for k, core in enumerate(operands) if name in core)

    return tuple((name, *first(name)) for name in DYNAMIC if name in size)
