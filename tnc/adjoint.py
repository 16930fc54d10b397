"""Reverse mode of a plan: gradients of its operands, with intermediates made again where none was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from tnc.plans import Plan, Step, View, dynamic, extents, look, multiply
from tnc.typing import Array, Namespace, Shape

__all__ = ["Pairs", "pairs", "pull", "push"]

Pairs = tuple[tuple[int, int], ...]
"""For every step the two values it multiplies: operands are numbered first, then results."""


def pairs(plan: Plan, n: int) -> Pairs:
    """What the steps of a plan for `n` operands multiply."""
    held, found = list(range(n)), []
    for t, step in enumerate(plan.steps):
        found.append((held[step.left], held[step.right]))
        held = [k for i, k in enumerate(held) if i not in (step.left, step.right)] + [n + t]
    return tuple(found)


def push(
    plan: Plan, arrays: Sequence[Array], xp: Namespace, allowed: float = 0, scratch: Namespace | None = None
) -> tuple[Array, dict[int, Array]]:
    """Run a plan, and keep small intermediates for `pull`.

    Parameters
    ----------
    allowed : float
        Entries that may be kept in all.
    scratch : namespace, optional
        Does all steps but the last.

    Returns
    -------
    array, dict of int to array
        The result, and values kept by their numbers in `pairs`.
    """
    dims, values, kept = dynamic(plan, arrays), dict(enumerate(arrays)), {}
    last = len(plan.steps) - 1
    for t, (step, (a, b)) in enumerate(zip(plan.steps, pairs(plan, len(arrays)), strict=True)):
        made = multiply(step, values.pop(a), values.pop(b), xp if t == last else scratch or xp, dims)
        values[len(arrays) + t] = made
        if t < last and prod(made.shape) <= allowed:
            kept[len(arrays) + t] = made
            allowed -= prod(made.shape)
    return look(values.popitem()[1], plan.final, xp, dims), kept


def pull(
    plan: Plan,
    arrays: Sequence[Array],
    kept: Mapping[int, Array],
    gradient: Array,
    needed: Sequence[bool],
    xp: Namespace,
    scratch: Namespace | None = None,
) -> list[Array | None]:
    """Gradients of the operands from that of the result; None where none is `needed`.

    Values that `push` did not keep are made again. `scratch` does what is not returned.
    """
    n, links, dims, inner = len(arrays), pairs(plan, len(arrays)), dynamic(plan, arrays), scratch or xp
    values = {**dict(enumerate(arrays)), **kept}
    wanted = dict(enumerate(needed))
    for t, (a, b) in enumerate(links):
        wanted[n + t] = wanted[a] or wanted[b]

    def value(k: int) -> Array:
        if k not in values:
            a, b = links[k - n]
            values[k] = multiply(plan.steps[k - n], value(a), value(b), inner, dims)
        return values[k]

    top = n + len(links) - 1
    shape = arrays[0].shape
    if links:
        a, b = links[-1]
        shape = _product(plan.steps[-1], value(a), value(b), xp, dims)
    found = {top: unlook(gradient, plan.final, shape, xp, dims)}
    for t in reversed(range(len(links))):
        if not wanted[n + t]:
            continue
        step, (a, b), g = plan.steps[t], links[t], found.pop(n + t)
        x, y = value(a), value(b)
        left, right = look(x, step.left_view, inner, dims), look(y, step.right_view, inner, dims)
        if wanted[a]:
            found[a] = _left(step, g, right, x.shape, xp if a < n else inner, dims)
        if wanted[b]:
            found[b] = _right(step, g, left, y.shape, xp if b < n else inner, dims)
        values.pop(n + t, None)
    return [found.get(k) for k in range(n)]


def _product(step: Step, x: Array, y: Array, xp: Namespace, dims: Mapping[str, Any]) -> Shape:
    """Shape of a step's result."""
    left, right = (look(z, v, xp, dims).shape for z, v in ((x, step.left_view), (y, step.right_view)))
    return (*(right if step.spread else left)[:-2], left[-2], right[-1])


def _left(step: Step, g: Array, right: Array, shape: Shape, xp: Namespace, dims: Mapping[str, Any]) -> Array:
    """Gradient of a step's left operand; of a spread matrix, summed over the matrices it multiplies."""
    if not step.spread:
        found = xp.matmul(*_transposed(g, xp.matrix_transpose(right), step.left_view, xp))
        return unlook(found, step.left_view, shape, xp, dims)
    many, m, n = g.shape
    k = right.shape[1]
    few = m * k <= (m + k) * n  # sums of products are then smaller than copies of the factors
    if not few:
        g, right = (xp.reshape(xp.permute_dims(z, (1, 0, 2)), (z.shape[1], many * n)) for z in (g, right))
    found = xp.matmul(*_transposed(g, xp.matrix_transpose(right), step.left_view, xp))
    return unlook(xp.sum(found, axis=0) if few else found, step.left_view, shape, xp, dims)


def _right(step: Step, g: Array, left: Array, shape: Shape, xp: Namespace, dims: Mapping[str, Any]) -> Array:
    """Gradient of a step's right operand."""
    left = xp.matrix_transpose(left)
    left = xp.broadcast_to(left, (g.shape[0], *left.shape)) if step.spread else left
    return unlook(xp.matmul(*_transposed(left, g, step.right_view, xp)), step.right_view, shape, xp, dims)


def _transposed(a: Array, b: Array, view: View, xp: Namespace) -> tuple[Array, Array]:
    """Factors of a gradient, or of its transpose for a view that is turned: it lies in memory as its operand does."""
    return (xp.matrix_transpose(b), xp.matrix_transpose(a)) if view.turn else (a, b)


def unlook(x: Array, view: View, shape: Shape, xp: Namespace, dims: Mapping[str, Any]) -> Array:
    """The inverse of `tnc.plans.look`, but for the last turn, to an array of the given shape."""
    if view.order is not None:
        split = shape if view.split is None else extents(view.split, dims)
        x = xp.reshape(x, tuple(split[axis] for axis in view.order))
        x = xp.permute_dims(x, tuple(view.order.index(axis) for axis in range(len(view.order))))
    return xp.reshape(x, tuple(shape))
