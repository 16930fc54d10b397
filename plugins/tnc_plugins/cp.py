"""Canonical polyadic decomposition: one hyperedge through all factors."""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Decomposition, Network
from tnc.modes import modes
from tnc.typing import Rank, Shape

__all__ = ["CP"]


@dataclass(frozen=True)
class CP(Decomposition):
    """``X[i_1, ..., i_N] = sum_r U_1[i_1, r] ... U_N[i_N, r]``, fitted by alternating least squares.

    Core shapes ``(I_n, R)``, parameters ``R sum I_n``. The kernel axes of a convolution are one mode, so that
    the layer is a 1 x 1, a depthwise and a 1 x 1 convolution. A best approximation of given
    rank may not exist, because terms can grow and cancel. The ridge of `tnc.fit.als` bounds them.

    Parameters
    ----------
    order : int, optional
        Modes per matrix axis. By default 1 for kernels and stacks, 2 for a matrix (with order 1 the CP of a
        matrix is only its SVD).
    rows, columns : tuple of int, optional
        The factors themselves; their numbers may differ.

    Raises
    ------
    WeightError
        The factors cannot hold the weight.

    References
    ----------
    Kolda and Bader (2009), sec. 3; Lebedev et al. (2015) for convolutions.
    """

    order: int | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r0, k0 k1 r0, n0 r0 -> m0 n0 k0 k1"``."""
        order = self.order if self.order is not None else 1 + (len(shape) == 2)
        named = modes(shape, order, self.rows, self.columns)
        cores = ", ".join(f"{mode} r0" for mode in named.sites)
        return Network.of_rank(f"{cores} -> {named.right}", named.sizes, rank)
