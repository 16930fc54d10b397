"""Tensor ring: a tensor train whose ends meet."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.modes import modes
from tnc.typing import Array, Rank, Shape

__all__ = ["Ring"]


@dataclass(frozen=True)
class Ring(Decomposition):
    """``X[i_1, ..., i_N] = tr G_1[i_1] ... G_N[i_N]``: row modes, then the kernel as one mode, then column modes.

    Core shapes ``(R_k, I_k, R_k+1)`` with ``R_N = R_0``, parameters ``sum R_k I_k R_k+1``.
    """

    order: int = 2
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"r0 m0 r1, r1 m1 r2, r2 k0 k1 r3, r3 n0 r4, r4 n1 r0 -> (m0 m1) (n0 n1) k0 k1"``."""
        named = modes(shape, self.order, self.rows, self.columns)
        count = len(named.sites)
        cores = [f"r{k} {mode} r{(k + 1) % count}" for k, mode in enumerate(named.sites)]
        return Network.of_rank(f"{', '.join(cores)} -> {named.right}", named.sizes, rank)
