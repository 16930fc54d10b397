"""Truncated singular value decomposition, the baseline for all other formats."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.modes import roles
from tnc.typing import Rank, Shape

__all__ = ["SVD"]


@dataclass(frozen=True)
class SVD(Decomposition):
    """``W = U V``, ``U`` of shape (out, r) and ``V`` of shape (r, in * kernel).

    Parameters: ``r (out + in * kernel)``. The best approximation of its rank in the Frobenius norm.
    A kernel is unfolded as out against everything else; the matrices of a stack share ``V``.

    References
    ----------
    Eckart and Young (1936).
    """

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r0, r0 n0 k0 k1 -> m0 n0 k0 k1"``."""
        role = roles(shape)
        rows = [f"m{i}" for i in range(len(role.stack) + 1)]
        columns = ["n0", *(f"k{i}" for i in range(len(role.kernel)))]
        pattern = f"{' '.join(rows)} r0, r0 {' '.join(columns)} -> {' '.join(rows + columns)}"
        return Network.of_rank(pattern, dict(zip(rows + columns, shape, strict=True)), rank)
