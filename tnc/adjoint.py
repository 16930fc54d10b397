"""Reverse mode of a plan: gradients of its operands, with intermediates made again where none was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from tnc.plans import Plan, Step, View, dynamic, extents, look, outcome, product, turned
from tnc.typing import Array, Namespace, Shape

__all__ = ["pull", "push"]


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
        The result, and values kept by their numbers: operands are numbered first, then results.
    """
    dims, values, kept = dynamic(plan, arrays), dict(enumerate(arrays)), {}
    last = len(plan.steps) - 1
    for t, (step, (a, b)) in enumerate(zip(plan.steps, plan.links, strict=True)):
        left, right = look(values.pop(a), step.left_view, xp, dims), look(values.pop(b), step.right_view, xp, dims)
        few = t < last and prod(outcome(step, left.shape, right.shape)) <= allowed
        made = product(step, left, right, xp if few or t == last else scratch or xp)
        values[len(arrays) + t] = made
        if few:
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
    n, links, dims, inner = len(arrays), plan.links, dynamic(plan, arrays), scratch or xp
    if not links:
        return [unlook(gradient, plan.final, arrays[0].shape, xp, dims) if needed[0] else None]
    values = _Values(plan, arrays, kept, inner)
    wanted = list(needed)
    for a, b in links:
        wanted.append(wanted[a] or wanted[b])
    found = {n + len(links) - 1: gradient}
    for t in reversed(range(len(links))):
        if not wanted[n + t]:
            continue
        step, (a, b), g = plan.steps[t], links[t], found.pop(n + t)
        left, right = values.factors(t)
        if t == len(links) - 1:
            g = unlook(g, plan.final, outcome(step, left.shape, right.shape), xp, dims)
        for k, view, one, other in ((a, step.left_view, _left, right), (b, step.right_view, _right, left)):
            if wanted[k]:
                space = xp if k < n else inner
                found[k] = unlook(one(step, g, other, space), view, values[k].shape, space, dims)
        values.forget(t)
    return [found.get(k) for k in range(n)]


class _Values(dict[int, Array]):
    """Values of a plan by number; one that is missing is made again when it is asked for."""

    def __init__(self, plan: Plan, arrays: Sequence[Array], kept: Mapping[int, Array], xp: Namespace) -> None:
        super().__init__(enumerate(arrays))
        self.update(kept)
        self.plan, self.n, self.xp, self.dims = plan, len(arrays), xp, dynamic(plan, arrays)
        self.looks: dict[int, tuple[Array, Array]] = {}

    def __missing__(self, k: int) -> Array:
        self[k] = product(self.plan.steps[k - self.n], *self.factors(k - self.n), self.xp)
        return self[k]

    def factors(self, t: int) -> tuple[Array, Array]:
        """Both operands of a step, looked at; held until `forget`, as they may be copies."""
        if t not in self.looks:
            step, (a, b) = self.plan.steps[t], self.plan.links[t]
            left = look(self[a], step.left_view, self.xp, self.dims)
            self.looks[t] = left, look(self[b], step.right_view, self.xp, self.dims)
        return self.looks[t]

    def forget(self, t: int) -> None:
        """A step whose gradients are known, and its result."""
        self.pop(self.n + t, None)
        del self.looks[t]


def _left(step: Step, g: Array, right: Array, xp: Namespace) -> Array:
    """Gradient of a step's left operand; of a spread matrix, summed over the matrices it multiplies.

    That of an operand which is turned comes turned: it lies in memory as its operand does.
    """
    turn, inner, spread = step.left_view.turn, step.right_view.turn, step.spread
    if spread:
        many, m, n = g.shape
        k = right.shape[-1 if inner else -2]
        if m * k > (m + k) * n:  # sums of products are then larger than copies of the factors
            right, inner, spread = turned(right, inner, xp), False, False
            g, right = (xp.reshape(xp.permute_dims(z, (1, 0, 2)), (z.shape[1], many * n)) for z in (g, right))
    b = turned(right, inner == turn, xp)
    found = xp.matmul(b, xp.matrix_transpose(g)) if turn else xp.matmul(g, b)
    return xp.sum(found, axis=0) if spread else found


def _right(step: Step, g: Array, left: Array, xp: Namespace) -> Array:
    """Gradient of a step's right operand, turned if that is."""
    turn = step.right_view.turn
    a = turned(left, step.left_view.turn == turn, xp)
    a = xp.broadcast_to(a, (g.shape[0], *a.shape)) if step.spread else a
    return xp.matmul(xp.matrix_transpose(g), a) if turn else xp.matmul(a, g)


def unlook(x: Array, view: View, shape: Shape, xp: Namespace, dims: Mapping[str, Any]) -> Array:
    """The inverse of `tnc.plans.look`, to an array of the given shape."""
    if view.order is not None:
        split = shape if view.split is None else extents(view.split, dims)
        x = _shaped(x, tuple(split[axis] for axis in view.order), xp)
        x = xp.permute_dims(x, tuple(view.order.index(axis) for axis in range(len(view.order))))
    return _shaped(x, shape, xp)


def _shaped(x: Array, shape: Shape, xp: Namespace) -> Array:
    return x if x.shape == shape else xp.reshape(x, tuple(shape))
