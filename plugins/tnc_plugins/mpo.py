"""Matrix product operator (TT-matrix): rows and columns factorized alike, one core per pair of factors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc import Decomposition, Network
from tnc.errors import WeightError
from tnc.modes import balanced, roles
from tnc.typing import Rank, Shape

__all__ = ["MPO"]


@dataclass(frozen=True)
class MPO(Decomposition):
    """``W[(m0..), (n0..)] = G0[m0, n0] G1[m1, n1] ...``, each core a matrix over its bonds.

    Core shapes ``(r_k, m_k, n_k, r_k+1)``, parameters ``sum r_k m_k n_k r_k+1``. The kernel axes of a
    convolution form a first core of their own, as does the axis of a stack of matrices.

    Parameters
    ----------
    order : int
        Number of cores; the factors are balanced (`tnc.modes.balanced`).
    rows, columns : tuple of int, optional
        The factors themselves; both or neither.

    References
    ----------
    Gao et al., Phys. Rev. Research 2, 023300 (2020), eq. 3; Novikov et al. (2015); Garipov et al. (2016).
    """

    order: int = 3
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) != (self.columns is None) or len(self.rows or ()) != len(self.columns or ()):
            raise WeightError(f"mpo needs as many rows as columns: rows={self.rows}, columns={self.columns}")
        if self.order < 1:
            raise WeightError(f"mpo(order={self.order}): at least one core is needed")

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 n0 r1, r1 m1 n1 r2, r2 m2 n2 -> (m0 m1 m2) (n0 n1 n2)"``."""
        role = roles(shape)
        rows = self.rows or balanced(shape[role.rows], self.order)
        columns = self.columns or balanced(shape[role.columns], self.order)
        if prod(rows) < shape[role.rows] or prod(columns) < shape[role.columns]:
            raise WeightError(f"mpo(rows={rows}, columns={columns}) cannot hold a weight of shape {tuple(shape)}")
        sites = len(rows)
        lead = [f"s{i}" for i in range(len(role.stack))] + [f"k{i}" for i in range(len(role.kernel))]
        sizes = dict(zip(lead, (shape[i] for i in (*role.stack, *role.kernel)), strict=True))
        sizes |= {f"m{i}": n for i, n in enumerate(rows)} | {f"n{i}": n for i, n in enumerate(columns)}
        cores = [["", f"r{i}"][i > 0] + f" m{i} n{i} " + ["", f"r{i + 1}"][i + 1 < sites] for i in range(sites)]
        if prod(sizes[i] for i in lead) > 1:
            cores = [" ".join([*lead, "r0"]), "r0 " + cores[0], *cores[1:]]
        else:  # a 1 x 1 kernel needs no core of its own
            cores[0] = " ".join([*lead, cores[0]])
        merged = [f"({' '.join(f'{letter}{i}' for i in range(sites))})" for letter in "mn"]
        axes = lead[: len(role.stack)] + merged + lead[len(role.stack) :]
        return Network.of_rank(f"{', '.join(cores)} -> {' '.join(axes)}", sizes, rank)
