"""Plans for a single input. They leave out the permutations and reshapes of axes of size 1 that a general plan has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tnc.contract.executor import dynamic, extents, outcome
from tnc.contract.layout import View
from tnc.contract.plans import Plan, Step
from tnc.typing import Array, Shape

__all__ = ["sized"]

KNOWN = 64
"""Most plans to remember for a general plan: feature maps may have many sizes."""


def sized(plan: Plan, arrays: Sequence[Array]) -> Plan:
    """The same plan for arrays of exactly these sizes. Axes of size 1, such as a single input, then need no work.

    Each of these plans is made once. The plan itself is returned if no dynamic index has size 1. It is also returned if
    the sizes are not integers, as in tracers.
    """
    sizes = tuple(arrays[k].shape[axis] for _, k, axis in plan.where)
    if not all(type(n) is int for n in sizes) or 1 not in sizes:
        return plan
    if (derived := plan.known.get(sizes)) is None:
        if len(plan.known) >= KNOWN:
            plan.known.clear()
        derived = plan.known[sizes] = _derived(plan, arrays)
    return derived


def _derived(plan: Plan, arrays: Sequence[Array]) -> Plan:
    """The plan without work on axes of size 1."""
    sizes = dynamic(plan, arrays)
    # For each value, the shape that the general plan expects, and the shape that the value has in the new plan.
    shapes: list[tuple[Shape, Shape]] = [(tuple(x.shape), tuple(x.shape)) for x in arrays]
    steps = []
    for step, (i, j) in zip(plan.steps, plan.links, strict=True):
        left, left_shape = _without_ones(step.left_view, *shapes[i], sizes)
        right, right_shape = _without_ones(step.right_view, *shapes[j], sizes)
        product = outcome(step, left_shape, right_shape)
        single = product[0] == 1  # one matrix instead of many
        steps.append(Step(step.left, step.right, left, right, step.spread and not single))
        shapes.append((product, product[-2:] if single else product))
    final, _ = _without_ones(plan.final, *shapes[-1], sizes, last=True)
    peak = max(prod(planned) for planned, _ in shapes)
    return replace(plan, steps=tuple(steps), final=final, where=(), peak=peak)


def _without_ones(
    view: View, planned: Shape, shape: Shape, sizes: Mapping[str, Any], last: bool = False
) -> tuple[View, Shape]:
    """A view without axes of size 1, and the shape that the general plan expects after it.

    Parameters
    ----------
    view : View
        The view of the general plan, of an array of shape `planned`.
    planned : tuple of int
    shape : tuple of int
        The shape that the array has instead: the same one, or that of a single matrix.
    sizes : mapping of str to int
        Sizes of the dynamic indices.
    last : bool
        Whether this is the final view. Its shape stays as it is. Otherwise a batch of one matrix becomes a matrix.
    """
    split = extents(planned if view.split is None else view.split, sizes)
    order = view.order or tuple(range(len(split)))
    goal = _permuted(split, order) if view.merge is None else extents(view.merge, sizes)
    merge = goal[-2:] if goal[:-2] == (1,) and not last else goal
    moved = [k for k in order if split[k] != 1]
    axes = sorted(moved)
    if moved == axes:  # a reshape does
        return View(merge=None if merge == shape else merge, turn=view.turn), goal
    split = _permuted(split, axes)
    order = tuple(axes.index(k) for k in moved)
    after = _permuted(split, order)
    return View(None if split == shape else split, order, None if after == merge else merge, view.turn), goal


def _permuted(shape: Shape, order: Sequence[int]) -> Shape:
    return tuple(shape[axis] for axis in order)
