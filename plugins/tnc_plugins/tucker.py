"""Tucker decomposition: a factor matrix per mode around a small core, fitted by HOOI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tnc import Decomposition, Network
from tnc.modes import modes
from tnc.typing import Rank, Shape

__all__ = ["Tucker"]


@dataclass(frozen=True)
class Tucker(Decomposition):
    """``X = G x_1 U_1 x_2 U_2 ...``; kernel axes stay in the core (Tucker-2 for a convolution).

    Core shapes ``U_n: (I_n, R_n)`` and ``G: (R_1, R_2, ..., *kernel)``; parameters
    ``sum I_n R_n + prod R_n prod kernel``.

    Parameters
    ----------
    order : int, optional
        Factors per matrix axis. By default 1 for kernels and stacks, 2 for a matrix (reshaped to four modes:
        with order 1 a Tucker of a matrix is only its SVD).
    rows, columns : tuple of int, optional
        The factors themselves; their numbers may differ.

    Raises
    ------
    WeightError
        The factors cannot hold the weight.

    References
    ----------
    De Lathauwer, De Moor and Vandewalle (2000); Kim et al. (2016) for convolutions.
    """

    order: int | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    sweeps: ClassVar[int] = 25

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r0, n0 r1, r0 r1 k0 k1 -> m0 n0 k0 k1"``."""
        order = self.order if self.order is not None else 1 + (len(shape) == 2)
        named = modes(shape, order, self.rows, self.columns)
        factors = [*named.stack, *named.rows, *named.columns]
        cores = [f"{mode} r{k}" for k, mode in enumerate(factors)]
        centre = [f"r{k}" for k in range(len(factors))] + list(named.kernel)
        return Network.of_rank(f"{', '.join(cores)}, {' '.join(centre)} -> {named.right}", named.sizes, rank)
