"""Block-term decomposition: a sum of small Tucker decompositions."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.errors import WeightError
from tnc.modes import modes
from tnc.typing import Array, Rank, Shape

__all__ = ["BTT"]


@dataclass(frozen=True)
class BTT(Decomposition):
    """``W = sum_b G_b x_1 A_b,1 ... x_d A_b,d``"""

    terms: int = 2
    order: int | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"b m0 n0 r0, b m1 n1 r1, b m2 n2 r2, b r0 r1 r2 -> (m0 m1 m2) (n0 n1 n2)"``."""
        paired = len(shape) == 2
        named = modes(shape, self.order or (3 if paired else 1), self.rows, self.columns)
        legs = [*named.stack, *named.rows, *named.columns]
        if paired:
            legs = [f"{m} {n}" for m, n in zip(named.rows, named.columns, strict=True)]
        bonds = [f"r{k}" for k in range(len(legs))]
        cores = [*(f"{leg} {bond}" for leg, bond in zip(legs, bonds)), " ".join([*bonds, *named.kernel])]
        if self.terms > 1:
            cores = [f"b {core}" for core in cores]
        sizes = named.sizes | ({"b": self.terms} if self.terms > 1 else {})
        return Network.of_rank(f"{', '.join(cores)} -> {named.right}", sizes, rank)
