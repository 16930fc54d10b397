"""Block-term decomposition: a sum of small Tucker decompositions."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.errors import WeightError
from tnc.modes import modes
from tnc.typing import Rank, Shape

__all__ = ["BTT"]


@dataclass(frozen=True)
class BTT(Decomposition):
    """``W = sum_b G_b x_1 A_b,1 ... x_d A_b,d``: a hyperedge ``b`` through a Tucker network.

    Core shapes ``A_k: (terms, M_k, N_k, R_k)`` and ``G: (terms, R_1, ..., R_d)``, parameters
    ``terms (sum M_k N_k R_k + prod R_k)``. In a kernel or a stack rows and columns have factors of their own and
    the kernel stays in the core: 1 x 1 convolutions around one with `terms` groups. Fitted by alternating least
    squares, with one term by the sweeps of a tree.

    Parameters
    ----------
    terms : int
        Number of Tucker terms.
    order : int, optional
        Modes per matrix axis: 3 for a matrix, 1 for kernels and stacks. Core ``G`` grows with its power.
    rows, columns : tuple of int, optional
        The factors themselves; for a matrix as many rows as columns.

    Raises
    ------
    WeightError
        The factors cannot hold the weight or cannot be paired, or there is no term.

    References
    ----------
    De Lathauwer (2008); Ye et al. (2018) for layers.
    """

    terms: int = 2
    order: int | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"b m0 n0 r0, b m1 n1 r1, b m2 n2 r2, b r0 r1 r2 -> (m0 m1 m2) (n0 n1 n2)"``."""
        order = self.order if self.order is not None else 3 if len(shape) == 2 else 1
        named = modes(shape, order, self.rows, self.columns)
        legs = [*named.stack, *named.rows, *named.columns]
        if len(shape) == 2:
            legs = [" ".join(pair) for pair in zip(named.rows, named.columns, strict=False)]
        if self.terms < 1 or (len(shape) == 2 and len(named.rows) != len(named.columns)):
            raise WeightError(f"{self} needs a term at least, and as many rows as columns: {named.sizes}")
        bonds = [f"r{k}" for k in range(len(legs))]
        cores = [*map(" ".join, zip(legs, bonds, strict=True)), " ".join([*bonds, *named.kernel])]
        term, sizes = ("b ", {"b": self.terms}) if self.terms > 1 else ("", {})
        return Network.of_rank(
            f"{', '.join(term + core for core in cores)} -> {named.right}", named.sizes | sizes, rank
        )
