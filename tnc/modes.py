"""Modes: the axes of a weight, split into named factors of about equal size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from tnc.errors import WeightError
from tnc.roles import Roles, roles
from tnc.typing import Shape

__all__ = ["Modes", "Roles", "balanced", "modes", "roles"]

_OVERSHOOT = 0.05
"""Largest padding of an axis, as a share of its length."""


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
        """The modes in the order of a chain: stack, rows, the whole kernel as one mode, columns.

        A kernel of size 1 is joined with the first column mode, because it needs no core.
        """
        columns, kernel = list(self.columns), " ".join(self.kernel)
        if kernel and prod(self.sizes[k] for k in self.kernel) == 1:
            columns[0], kernel = f"{columns[0]} {kernel}", ""
        return (*self.stack, *self.rows, *filter(None, [kernel]), *columns)


def modes(
    shape: Shape, order: int = 1, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
) -> Modes:
    """Split the rows and columns of a weight into modes.

    Parameters
    ----------
    shape : tuple of int
        Shape of the weight; see `tnc.roles.roles`.
    order : int
        Number of factors of the rows, and of the columns; they are chosen by `balanced`.
    rows, columns : sequence of int, optional
        The factors themselves, in place of `order`. Their product must be at least the length of the axis.

    Returns
    -------
    Modes

    Raises
    ------
    WeightError
        The order is below 1, or the product of the given factors is too small.
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
    """`order` factors of about equal size, the largest ones at the ends. Their product is at least `length`.

    The product is `length` itself, unless one factor would be much larger than the others (a large prime). Then it is
    the nearest larger product with balanced factors, at most 5 % above `length`.

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
            factors = _factors(longer, order)
            if factors[0] <= limit * ideal:
                return _ends_first(factors)
    return _ends_first(exact)


def _factors(length: int, order: int) -> list[int]:
    """Factors of `length`, the largest first. Each prime multiplies the factor that is smallest at that moment."""
    factors = [1] * order
    for prime in sorted(_primes(length), reverse=True):
        factors[factors.index(min(factors))] *= prime
    return sorted(factors, reverse=True)


def _primes(n: int) -> list[int]:
    """The prime factors of a number, in ascending order."""
    primes, p = [], 2
    while p * p <= n:
        while n % p == 0:
            primes.append(p)
            n //= p
        p += 1
    return primes + [n] * (n > 1)


def _ends_first(factors: list[int]) -> tuple[int, ...]:
    """The factors with the largest at the ends: a core at an end has one bond, an inner core has two."""
    front, back = factors[0::2], factors[1::2]
    result = tuple(front + back[::-1])
    assert prod(result) == prod(factors)
    return result
