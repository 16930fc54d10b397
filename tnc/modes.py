"""How a weight's axes become modes: which axis is what, balanced factors of a length, names for both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from tnc.errors import WeightError
from tnc.typing import Shape

__all__ = ["Modes", "Roles", "balanced", "modes", "roles"]

# A three-way weight whose last axis is longer than this is a stack of matrices (experts), not a kernel.
_LONGEST_KERNEL = 32
_OVERSHOOT = 0.05


class Roles(NamedTuple):
    """Axes of a weight by what they do."""

    stack: tuple[int, ...]
    rows: int
    columns: int
    kernel: tuple[int, ...]


def roles(shape: Shape) -> Roles:
    """Rows, columns and kernel axes of a weight: ``(out, in)``, ``(out, in, *kernel)`` or ``(stack, out, in)``.

    Raises
    ------
    WeightError
        The weight has fewer than two axes.
    """
    if len(shape) < 2:
        raise WeightError(f"a weight of shape {tuple(shape)} has fewer than two axes: nothing to factorize")
    if len(shape) == 3 and shape[2] > _LONGEST_KERNEL:
        return Roles((0,), 1, 2, ())
    return Roles((), 0, 1, tuple(range(2, len(shape))))


class Modes(NamedTuple):
    """Named modes of a weight: ``s*`` stack, ``m*`` rows, ``n*`` columns, ``k*`` kernel.

    Attributes
    ----------
    stack, rows, columns, kernel : tuple of str
        Names of the modes, in order.
    sizes : dict of str to int
        Size of each.
    right : str
        The right-hand side of a pattern, such as ``(m0 m1) (n0 n1) k0 k1``.
    """

    stack: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    kernel: tuple[str, ...]
    sizes: dict[str, int]
    right: str

    @property
    def sites(self) -> tuple[str, ...]:
        """Modes in the order of a chain: stack, rows, the whole kernel as one mode, columns.

        A kernel of size 1 joins the first column: it needs no core of its own.
        """
        columns, kernel = list(self.columns), " ".join(self.kernel)
        if kernel and prod(self.sizes[k] for k in self.kernel) == 1:
            columns[0], kernel = f"{columns[0]} {kernel}", ""
        return (*self.stack, *self.rows, *filter(None, [kernel]), *columns)


def modes(
    shape: Shape, order: int = 1, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
) -> Modes:
    """Factorize rows and columns of a weight into modes, by `balanced` unless the factors are given.

    Raises
    ------
    WeightError
        The order is below 1, or the given factors cannot hold the weight.
    """
    role = roles(shape)
    if order < 1:
        raise WeightError(f"order={order}: at least one factor per axis is needed")
    factors = tuple(rows or balanced(shape[role.rows], order)), tuple(columns or balanced(shape[role.columns], order))
    for given, axis, name in zip(factors, (role.rows, role.columns), ("rows", "columns"), strict=True):
        if min(given) < 1 or prod(given) < shape[axis]:
            raise WeightError(
                f"{name}={given} cannot hold the {shape[axis]} {name} of a weight of shape {tuple(shape)}"
            )
    named = [[f"{letter}{i}" for i in range(len(f))] for letter, f in zip("mn", factors, strict=True)]
    stack, kernel = (
        [f"{c}{i}" for i in range(len(axes))] for c, axes in zip("sk", (role.stack, role.kernel), strict=True)
    )
    sizes = dict(zip([*named[0], *named[1]], [*factors[0], *factors[1]], strict=True))
    sizes |= dict(zip([*stack, *kernel], (shape[axis] for axis in (*role.stack, *role.kernel)), strict=True))
    right = " ".join([*stack, *(f"({' '.join(names)})" for names in named), *kernel])
    return Modes(tuple(stack), tuple(named[0]), tuple(named[1]), tuple(kernel), sizes, right)


@lru_cache(maxsize=4096)
def balanced(length: int, order: int) -> tuple[int, ...]:
    """`order` factors of about equal size, the largest at the ends, their product at least `length`.

    The product is `length` itself unless that forces a factor far above the others (a large prime); then the
    length is overshot by at most 5 %, to the nearest product whose factors are balanced.

    Examples
    --------
    >>> balanced(64, 3), balanced(50257, 3)
    ((4, 4, 4), (43, 30, 39))
    """
    ideal = length ** (1 / order)
    exact = _factors(length, order)
    if exact[0] <= 2.5 * ideal:
        return _ends_first(exact)
    for limit in (1.3, 1.6, 2.0):
        for longer in range(length + 1, int(length * (1 + _OVERSHOOT)) + 1):
            found = _factors(longer, order)
            if found[0] <= limit * ideal:
                return _ends_first(found)
    return _ends_first(exact)


def _factors(length: int, order: int) -> list[int]:
    """Factors of `length`, largest first: each prime goes to the smallest product so far."""
    found = [1] * order
    for prime in sorted(_primes(length), reverse=True):
        found[found.index(min(found))] *= prime
    return sorted(found, reverse=True)


def _primes(n: int) -> list[int]:
    found, p = [], 2
    while p * p <= n:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found + [n] * (n > 1)


def _ends_first(factors: list[int]) -> tuple[int, ...]:
    """Largest factors outside: an end core costs one bond, an inner core two."""
    front, back = factors[0::2], factors[1::2]
    result = tuple(front + back[::-1])
    assert prod(result) == prod(factors)
    return result
