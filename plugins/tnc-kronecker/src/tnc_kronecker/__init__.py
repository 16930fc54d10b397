"""Sums of Kronecker products: a decomposition for `tnc`, in a distribution of its own."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.errors import WeightError
from tnc.modes import modes
from tnc.typing import Rank, Shape

__all__ = ["Kronecker"]


@dataclass(frozen=True)
class Kronecker(Decomposition):
    """``W = sum_i B_i ⊗ C_i``: the nearest sum of `rank` Kronecker products.

    Core shapes ``B: (m0, n0, r)`` and ``C: (r, m1, n1)``, parameters ``r (m0 n0 + m1 n1)``. The kernel of a
    convolution belongs to ``C``; the matrices of a stack have a ``B`` each and share the ``C``. With two cores
    the network is a tree, so the inherited fit is one truncated SVD, and the best there is.

    Parameters
    ----------
    rows, columns : (int, int), optional
        The factors ``(m0, m1)`` and ``(n0, n1)``; about equal when left out. Their product may overshoot the axis.

    Raises
    ------
    WeightError
        The factors are not two, or cannot hold the weight.

    References
    ----------
    Van Loan and Pitsianis (1993).
    """

    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, factors in (("rows", self.rows), ("columns", self.columns)):
            if factors is not None and len(factors) != 2:
                raise WeightError(f"kronecker({name}={factors}): two factors are needed, such as {name}=(4, 8)")

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 n0 r0, r0 m1 n1 -> (m0 m1) (n0 n1)"``."""
        named = modes(shape, 2, self.rows, self.columns)
        b = [*named.stack, named.rows[0], named.columns[0], "r0"]
        c = ["r0", named.rows[1], named.columns[1], *named.kernel]
        return Network.of_rank(f"{' '.join(b)}, {' '.join(c)} -> {named.right}", named.sizes, rank)
