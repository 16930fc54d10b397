"""Semi-tensor product formats: Tucker, train and ring whose cores are multiplied by ``A ⋉ B = A (B ⊗ I_t)``.

Each is its classical format on a tensor with regrouped modes, and has the same closed-form fit. With equal numbers of
parameters no format is better in general. Compare rank ``R`` here with rank ``R / t`` of the classical format.

References: Zhao, Liu, Huang and Zhu (2021); Cheng (2011) for the semi-tensor product.
"""

from __future__ import annotations

from dataclasses import dataclass

from tnc import Network
from tnc.typing import Rank, Shape
from tnc_plugins.passthrough import Ratio, semitensor, step
from tnc_plugins.ring import Ring
from tnc_plugins.tt import TT
from tnc_plugins.tucker import Tucker

__all__ = ["STR", "STT", "STTu"]


@dataclass(frozen=True)
class STTu(Tucker):
    """Semi-tensor Tucker: factors ``(I_n/t, R_n/t)``, core ``prod R_n``; kernel and stack are not divided.

    Parameters ``prod R_n prod kernel + sum I_n R_n / t^2``. Fields as in `tucker`, and `t`: one ratio, or one per
    bond; it divides the ranks (else `RankError`) and the factors (chosen so; given ones else raise `WeightError`).
    """

    t: Ratio = 2

    @property
    def step(self) -> int:
        return step(self.t)

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r0, n0 r1, r0 t0 r1 t1 k0 k1 -> (m0 t0) (n0 t1) k0 k1"``."""
        return semitensor(Tucker(self.order, self.rows, self.columns), self.t, -1, shape, rank)


@dataclass(frozen=True)
class STT(TT):
    """Semi-tensor train: cores ``(R_k-1/t, I_k/t, R_k)``; the first one and a kernel's are not divided.

    Parameters ``I_1 R_1 + sum_k>1 R_k-1 I_k R_k / t^2``. Fields as in `tt`, and `t`: one ratio, or one per bond; it
    divides the ranks (else `RankError`) and the factors (chosen so; given ones else raise `WeightError`).
    """

    t: Ratio = 2

    @property
    def step(self) -> int:
        return step(self.t)

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r1 t1, r1 m1 r2 t2, r2 n0 r3 t3, r3 n1 -> (m0 m1 t1) (n0 t2 n1 t3)"``."""
        return semitensor(TT(self.order, self.rows, self.columns), self.t, 0, shape, rank)


@dataclass(frozen=True)
class STR(Ring):
    """Semi-tensor ring: cores ``(R_k/t, I_k/t, R_k+1)``; a kernel's is not divided.

    Parameters ``sum R_k I_k R_k+1 / t^2``. Fields as in `ring`, and `t`: one ratio, or one per bond; it divides
    the ranks (else `RankError`) and the factors (chosen so; given ones else raise `WeightError`).
    """

    t: Ratio = 2

    @property
    def step(self) -> int:
        return step(self.t)

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"r0 m0 r1 t1, r1 m1 r2 t2, r2 n0 r3 t3, r3 n1 r0 t0 -> (m0 t0 m1 t1) (n0 t2 n1 t3)"``."""
        return semitensor(Ring(self.order, self.rows, self.columns), self.t, 0, shape, rank)
