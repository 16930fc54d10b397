"""Tensor train of a matrix, not interleaved: the middle bond is the matrix rank."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.modes import modes
from tnc.typing import Rank, Shape

__all__ = ["TT"]


@dataclass(frozen=True)
class TT(Decomposition):
    """``W[(m0 m1), (n0 n1)] = G0[m0] G1[m1] G2[n0] G3[n1]``: first the row modes, then the column modes.

    Core shapes ``(R_k-1, I_k, R_k)`` with ``R_0 = R_N = 1``, parameters ``sum R_k-1 I_k R_k``. The bond between
    rows and columns is the rank of the matrix, so a truncated SVD is the case where the other bonds are full
    (with ``order=1`` there are no others). The interleaved `mpo` has no such case.

    The kernel axes of a convolution are one mode with a core of its own *between* rows and columns, as in a
    tensor ring: the factorized forward is 1 x 1 convolutions around one with the kernel. A stack comes first.

    Parameters
    ----------
    order : int
        Modes per matrix axis; the factors are balanced (`tnc.modes.balanced`).
    rows, columns : tuple of int, optional
        The factors themselves; their numbers may differ.

    Raises
    ------
    WeightError
        The factors cannot hold the weight.

    References
    ----------
    Oseledets (2011); Yang et al., LoRETTA (2024) for this order of the modes.
    """

    order: int = 2
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r1, r1 m1 r2, r2 k0 k1 r3, r3 n0 r4, r4 n1 -> (m0 m1) (n0 n1) k0 k1"``."""
        named = modes(shape, self.order, self.rows, self.columns)
        last = len(named.sites) - 1
        cores = [f"r{k} " * (k > 0) + mode + f" r{k + 1}" * (k < last) for k, mode in enumerate(named.sites)]
        return Network.of_rank(f"{', '.join(cores)} -> {named.right}", named.sizes, rank)
