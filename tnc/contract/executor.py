"""Run plans: permute, reshape and multiply, forward and backward, with any array library.

The values of a plan have numbers: the operands come first, then the result of every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from array_api_compat import array_namespace

from tnc.contract.layout import View
from tnc.contract.order import Indices
from tnc.contract.plans import Plan, Step, plan
from tnc.typing import Array, Namespace, Shape

__all__ = ["Executor", "changing", "contract", "dynamic", "extents", "outcome", "run"]

Kept = dict[int, Array]
"""Intermediates that the forward pass keeps for the backward pass, by number."""


@dataclass(frozen=True)
class Executor:
    """How plans run: with which array library, in which memory, and what is kept for a backward pass.

    This class keeps nothing in `run`. `tnc.nn.runtime.autograd.Recorded` is the executor for torch's autograd.

    Parameters
    ----------
    xp : namespace
        The array library. It makes the results.
    workspace : namespace, optional
        The library that makes the intermediates, in memory that is used again; `xp` when omitted.
    """

    xp: Namespace
    workspace: Namespace | None = None

    def run(self, plan: Plan, arrays: Sequence[Array], beside: int | None = None) -> Array:
        """Contract the operands of a plan.

        Parameters
        ----------
        plan : Plan
        arrays : sequence of array
            The operands, in the order of the plan.
        beside : int, optional
            Number of entries that intermediates are compared with; that of the first operand when omitted. An executor
            for a backward pass keeps intermediates only if they have few entries in comparison.

        Returns
        -------
        array
            The result, with the axes of the plan's output.
        """
        return self.forward(plan, arrays)[0]

    def call(self, function: Callable[..., Array], *arrays: Array) -> Array:
        """Call a function with large intermediates that are cheap to compute again."""
        return function(*arrays)

    def forward(self, plan: Plan, arrays: Sequence[Array], keep: float = 0) -> tuple[Array, Kept]:
        """Run a plan and keep small intermediates for `backward`.

        Parameters
        ----------
        plan : Plan
        arrays : sequence of array
            The operands, in the order of the plan.
        keep : float
            Number of entries that may be kept in total.

        Returns
        -------
        array, dict of int to array
            The result, and the intermediates that are kept, by number.
        """
        sizes = dynamic(plan, arrays)
        values = dict(enumerate(arrays))
        kept: Kept = {}
        n = len(arrays)
        last = len(plan.steps) - 1
        inner = self.workspace or self.xp
        for t, (step, (a, b)) in enumerate(zip(plan.steps, plan.links, strict=True)):
            left = viewed(values.pop(a), step.left_view, self.xp, sizes)  # (m, k) or (many, m, k)
            right = viewed(values.pop(b), step.right_view, self.xp, sizes)  # (k, n) or (many, k, n)
            entries = prod(outcome(step, left.shape, right.shape)) if keep else 0
            small = t < last and 0 < entries <= keep
            values[n + t] = _product(step, left, right, self.xp if small or t == last else inner)
            if small:
                kept[n + t] = values[n + t]
                keep -= entries
        return viewed(values.popitem()[1], plan.final, self.xp, sizes), kept

    def bound(self, plan: Plan, fixed: Sequence[Array]) -> Callable[[Array], Array]:
        """The contraction as a function of its last operand. What needs the other operands only is computed once.

        Parameters
        ----------
        plan : Plan
        fixed : sequence of array
            All operands but the last.

        Returns
        -------
        callable
            From the last operand to the result.
        """
        n = len(fixed) + 1
        values: dict[int, Array] = dict(enumerate(fixed))
        moving = changing(plan)
        factors: dict[
            int, tuple[Array | None, Array | None]
        ] = {}  # the operands as matrices; None for one that changes
        sizes = dynamic(plan, fixed)

        def matrices(t: int, values: Mapping[int, Array]) -> tuple[Array | None, Array | None]:
            step, (a, b) = plan.steps[t], plan.links[t]
            left = viewed(values[a], step.left_view, self.xp, sizes) if a in values else None
            return left, viewed(values[b], step.right_view, self.xp, sizes) if b in values else None

        for t, step in enumerate(plan.steps):
            factors[t] = matrices(t, values)
            if t not in moving:
                left, right = factors.pop(t)
                values[n + t] = _product(step, left, right, self.xp)

        def applied(x: Array) -> Array:
            changed = {n - 1: x}
            for t in moving:
                (left, right), (new_left, new_right) = factors[t], matrices(t, changed)
                left, right = (new_left if left is None else left), (new_right if right is None else right)
                changed[n + t] = _product(plan.steps[t], left, right, self.xp)
            return viewed(changed[max(changed)], plan.final, self.xp, sizes)

        return applied

    def backward(
        self, plan: Plan, arrays: Sequence[Array], kept: Mapping[int, Array], gradient: Array, needed: Sequence[bool]
    ) -> list[Array | None]:
        """Gradients of a plan's operands.

        Parameters
        ----------
        plan : Plan
        arrays : sequence of array
            The operands.
        kept : mapping of int to array
            The intermediates that `forward` kept. All others are computed again.
        gradient : array
            The gradient of the result, in its shape.
        needed : sequence of bool
            For each operand, whether it needs a gradient.

        Returns
        -------
        list of array or None
            A gradient for each operand, in its shape; None for operands that need none.
        """
        n = len(arrays)
        links = plan.links
        sizes = dynamic(plan, arrays)
        inner = self.workspace or self.xp
        if not links:
            return [unviewed(gradient, plan.final, arrays[0].shape, self.xp, sizes) if needed[0] else None]
        values = _Values(plan, arrays, kept, inner)
        wanted = list(needed)
        for a, b in links:
            wanted.append(wanted[a] or wanted[b])
        gradients = {n + len(links) - 1: gradient}
        for t in reversed(range(len(links))):
            if not wanted[n + t]:
                continue
            step = plan.steps[t]
            a, b = links[t]
            g = gradients.pop(n + t)
            left, right = values.factors(t)
            if t == len(links) - 1:
                g = unviewed(g, plan.final, outcome(step, left.shape, right.shape), self.xp, sizes)
            if wanted[a]:
                xp = self.xp if a < n else inner
                gradients[a] = unviewed(_left_gradient(step, g, right, xp), step.left_view, values[a].shape, xp, sizes)
            if wanted[b]:
                xp = self.xp if b < n else inner
                gradients[b] = unviewed(_right_gradient(step, g, left, xp), step.right_view, values[b].shape, xp, sizes)
            values.forget(t)
        return [gradients.get(k) for k in range(n)]


def run(plan: Plan, arrays: Sequence[Array], xp: Namespace | None = None) -> Array:
    """Contract the operands of a plan, with their own library and on their device.

    Parameters
    ----------
    plan : Plan
    arrays : sequence of array
        The operands, in the order of the plan.
    xp : namespace, optional
        The array library; that of the operands when omitted.

    Returns
    -------
    array
        The result, with the axes of the plan's output.
    """
    return Executor(array_namespace(*arrays) if xp is None else xp).run(plan, arrays)


def contract(operands: Sequence[Indices], output: Indices, arrays: Sequence[Array]) -> Array:
    """Plan a contraction for the sizes of some arrays, and run it.

    Parameters
    ----------
    operands : sequence of tuple of str
        The index names of every array.
    output : tuple of str
        The index names of the result.
    arrays : sequence of array
        One for each operand.

    Returns
    -------
    array
        The result, with one axis for each index of the output.

    Raises
    ------
    PatternError
        An index stands in one operand only and not in the output.
    """
    sizes = {n: s for core, x in zip(operands, arrays, strict=True) for n, s in zip(core, x.shape, strict=True)}
    return run(plan(tuple(map(tuple, operands)), tuple(output), tuple(sizes.items())), arrays)


def changing(plan: Plan) -> list[int]:
    """The steps of a plan that depend on its last operand, in order."""
    n = len(plan.steps) + 1
    values, steps = {n - 1}, []
    for t, (a, b) in enumerate(plan.links):
        if a in values or b in values:
            values.add(n + t)
            steps.append(t)
    return steps


# ---------------------------------------------------------------------- views


def dynamic(plan: Plan, arrays: Sequence[Array]) -> dict[str, Any]:
    """Sizes of the dynamic indices of a plan, read from its operands."""
    return {name: arrays[k].shape[axis] for name, k, axis in plan.where}


def extents(shape: tuple[Any, ...], sizes: Mapping[str, Any]) -> tuple[Any, ...]:
    """A shape in numbers, with the sizes of the dynamic indices."""
    if not sizes:
        return shape
    return tuple(
        e if isinstance(e, int) else e.factor * sizes[e.names[0]] * (sizes[e.names[1]] if len(e.names) > 1 else 1)
        for e in shape
    )


def viewed(x: Array, view: View, xp: Namespace, sizes: Mapping[str, Any]) -> Array:
    """Reshape, permute, reshape. The last two axes are swapped later, by `_turned`."""
    if view.split is not None:
        x = xp.reshape(x, extents(view.split, sizes))
    if view.order is not None:
        x = xp.permute_dims(x, view.order)
    return x if view.merge is None else xp.reshape(x, extents(view.merge, sizes))


def unviewed(x: Array, view: View, shape: Shape, xp: Namespace, sizes: Mapping[str, Any]) -> Array:
    """Undo `viewed`, for an array of the given shape."""
    if view.order is not None:
        split = shape if view.split is None else extents(view.split, sizes)
        x = _shaped(x, tuple(split[axis] for axis in view.order), xp)
        x = xp.permute_dims(x, tuple(view.order.index(axis) for axis in range(len(view.order))))
    return _shaped(x, shape, xp)


def _shaped(x: Array, shape: Shape, xp: Namespace) -> Array:
    return x if x.shape == shape else xp.reshape(x, tuple(shape))


def _turned(x: Array, turn: bool, xp: Namespace) -> Array:
    """The array with its last two axes swapped if `turn` is set."""
    return xp.matrix_transpose(x) if turn else x


# ------------------------------------------------------------------- products


def _product(step: Step, left: Array, right: Array, xp: Namespace) -> Array:
    """The matrix product of two operands: (many, m, k) by (many, k, n), or (m, k) by (k, n)."""
    a, b = _turned(left, step.left_view.turn, xp), _turned(right, step.right_view.turn, xp)
    return xp.matmul(xp.broadcast_to(a, (b.shape[0], *a.shape)) if step.spread else a, b)


def outcome(step: Step, left: Shape, right: Shape) -> Shape:
    """The shape of a product.

    Parameters
    ----------
    step : Step
    left, right : tuple of int
        Shapes of the operands as `viewed`: (m, k) and (k, n), with a batch in front if there is one. If a view swaps
        the last two axes (`View.turn`), they are not swapped yet.

    Returns
    -------
    tuple of int
        (m, n), or (many, m, n).
    """
    rows = left[-1 if step.left_view.turn else -2]
    columns = right[-2 if step.right_view.turn else -1]
    return (*(right if step.spread else left)[:-2], rows, columns)


def _left_gradient(step: Step, g: Array, right: Array, xp: Namespace) -> Array:
    """Gradient of a step's left operand, from the gradient `g` of the product: (m, n) or (many, m, n).

    For a spread operand, it is summed over the matrices which the operand multiplies. If the axes of the operand are
    swapped, so are those of the gradient: both have the same order in memory.
    """
    turn = step.left_view.turn
    right_turn = step.right_view.turn
    spread = step.spread
    if spread:
        many, m, n = g.shape
        k = right.shape[-1 if right_turn else -2]
        if m * k > (m + k) * n:
            # The products to be summed would be larger than copies of the factors: one product of long rows instead,
            # (m, many * n) by (many * n, k).
            right = _turned(right, right_turn, xp)
            g, right = (xp.reshape(xp.permute_dims(z, (1, 0, 2)), (z.shape[1], many * n)) for z in (g, right))
            right_turn = False
            spread = False
    b = _turned(right, right_turn == turn, xp)
    gradient = xp.matmul(b, xp.matrix_transpose(g)) if turn else xp.matmul(g, b)
    return xp.sum(gradient, axis=0) if spread else gradient


def _right_gradient(step: Step, g: Array, left: Array, xp: Namespace) -> Array:
    """Gradient of a step's right operand. If the axes of the operand are swapped, so are those of the gradient."""
    turn = step.right_view.turn
    a = _turned(left, step.left_view.turn == turn, xp)
    a = xp.broadcast_to(a, (g.shape[0], *a.shape)) if step.spread else a
    return xp.matmul(xp.matrix_transpose(g), a) if turn else xp.matmul(a, g)


class _Values(dict[int, Array]):
    """Values of a plan by number. A missing one is computed when it is asked for."""

    def __init__(self, plan: Plan, arrays: Sequence[Array], kept: Mapping[int, Array], xp: Namespace) -> None:
        super().__init__(enumerate(arrays))
        self.update(kept)
        self.plan = plan
        self.n = len(arrays)
        self.xp = xp
        self.sizes = dynamic(plan, arrays)
        self.matrices: dict[int, tuple[Array, Array]] = {}

    def __missing__(self, k: int) -> Array:
        self[k] = _product(self.plan.steps[k - self.n], *self.factors(k - self.n), self.xp)
        return self[k]

    def factors(self, t: int) -> tuple[Array, Array]:
        """Both operands of a step as matrices. They may be copies, so they are kept until `forget`."""
        if t not in self.matrices:
            step, (a, b) = self.plan.steps[t], self.plan.links[t]
            left = viewed(self[a], step.left_view, self.xp, self.sizes)
            self.matrices[t] = left, viewed(self[b], step.right_view, self.xp, self.sizes)
        return self.matrices[t]

    def forget(self, t: int) -> None:
        """Drop the result of a step and its operands as matrices. Call it when their gradients are known."""
        self.pop(self.n + t, None)
        del self.matrices[t]
