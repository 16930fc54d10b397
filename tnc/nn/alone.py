"""Plans for one input alone: what is planned for many permutes and reshapes axes of size 1, one operation each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tnc.plans import Plan, Step, View, dynamic, extents, outcome
from tnc.typing import Array, Shape

__all__ = ["sized"]

KNOWN = 64
"""Sizes for which a plan is remembered at once: feature maps may have many."""


def sized(plan: Plan, arrays: Sequence[Array]) -> Plan:
    """The same plan for arrays of these very sizes: those of size 1, such as one input alone, take no work.

    Each is made once; without a size of 1 nothing changes, nor where sizes are no numbers, as in tracers.
    """
    sizes = tuple(arrays[k].shape[axis] for _, k, axis in plan.where)
    if not all(type(n) is int for n in sizes) or 1 not in sizes:
        return plan
    if (found := plan.known.get(sizes)) is None:
        if len(plan.known) >= KNOWN:
            plan.known.clear()
        dims, held, steps = dynamic(plan, arrays), [(tuple(x.shape),) * 2 for x in arrays], []
        for step, (i, j) in zip(plan.steps, plan.links, strict=True):
            (left, a), (right, b) = _plain(step.left_view, *held[i], dims), _plain(step.right_view, *held[j], dims)
            made = outcome(step, a, b)
            steps.append(Step(step.left, step.right, left, right, step.spread and made[0] != 1))
            held.append((made, made[-2:] if made[0] == 1 else made))
        final = _plain(plan.final, *held[-1], dims, last=True)[0]
        peak = max(prod(made) for made, _ in held)
        found = plan.known[sizes] = replace(plan, steps=tuple(steps), final=final, where=(), peak=peak)
    return found


def _plain(view: View, planned: Shape, x: Shape, dims: Mapping[str, Any], last: bool = False) -> tuple[View, Shape]:
    """A view of an array of shape `x` instead of the one planned, and the shape planned for what it makes of it."""
    split = extents(planned if view.split is None else view.split, dims)
    order = tuple(range(len(split))) if view.order is None else view.order
    goal = tuple(split[k] for k in order) if view.merge is None else extents(view.merge, dims)
    moved = [k for k in order if split[k] != 1]
    axes, merge = sorted(moved), goal[-2:] if goal[:-2] == (1,) and not last else goal  # one matrix, not many
    if moved == axes:
        return View(merge=None if merge == x else merge, turn=view.turn), goal
    split, order = tuple(split[k] for k in axes), tuple(map(axes.index, moved))
    after = tuple(split[k] for k in order)
    return View(None if split == x else split, order, None if after == merge else merge, view.turn), goal
