"""Automatically differentiable tensor network (ADTN): a brick wall of small gates that generates the weight."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from tnc import Decomposition, Network
from tnc.contract import ACTIVATIONS
from tnc.errors import RankError, WeightError
from tnc.typing import Array, Rank, Shape
from tnc_plugins.brickwall import first, train, wall
from tnc_plugins.digits import base, sites
from tnc_plugins.gates import Progress, deepen, orthogonal, widen

__all__ = ["ADTN"]


@dataclass(frozen=True)
class ADTN(Decomposition):
    """``W = L_M s(... s(L_1 v))``: Q sites of size d, ``v = [1, 0, ...]`` at each, layers of Q - 1 gates d x d x d x d.

    Gates of the first column are d x d: ``d^2 floor(Q/2) + d^4 (floor((Q-1)/2) + (Q-1) (M-1))`` parameters, 424 for
    512 -> 4096 -> 4096 at M = 1. Every axis is padded to a power of d. A fit ignores the padding.

    It is meant for training inside a model. As an approximation a truncated SVD of equal size is mostly better. M = 1
    is a tensor train of rank d (a matrix of rank at most d^2), fitted in closed form; more layers need a gradient fit.

    Parameters
    ----------
    depth : int, optional
        Number of layers M. The rank is the gate dimension d. With None the rank is the depth, at most 16.
    activation : str
        The function ``s``, a key of `tnc.contract.recipes.ACTIVATIONS`. The last layer is linear.
    dimension : int
        The smallest d. A larger one, up to the rank, is used if it pads a weight to at most 8 times its size.
    steps : int, optional
        Steps of the gradient fit. By default at most 800, and fewer for large weights.

    References
    ----------
    Qing, Li, Zhou and Ran (2025), arXiv 2305.06058.
    """

    depth: int | None = 1
    activation: str = "relu"
    dimension: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        least = min(n if n is not None else 1 for n in (self.depth, self.steps))
        if least < 1 or self.dimension < 2 or self.activation not in ACTIVATIONS:
            raise WeightError(f"{self}: depth and steps from 1, a dimension from 2 and one of {', '.join(ACTIVATIONS)}")

    @property
    def step(self) -> int:
        return self.dimension if self.depth else 1

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"m0 r1, r2 n1, m1 n0 r1 r2 -> (m0 m1) (n0 n1)"`` for a 4 x 4 matrix at depth 1."""
        if not isinstance(rank, Integral) or rank < 1:
            raise RankError(f"rank {rank!r}: {self} takes a whole number, its gate dimension or where free its depth")
        d = self.dimension if self.depth is None else base(shape, self.dimension, int(rank))
        axes = sites(shape, d)
        if sum(map(len, axes)) < 2:
            raise WeightError(f"a weight of shape {tuple(shape)} has fewer than two sites for {self}")
        return wall(axes, d, self.depth or min(int(rank), 16), self.activation)

    def random(self, network: Network, shape: Shape, *, seed: int = 0) -> list[Array]:
        """Random orthogonal gates (see `tnc_plugins.gates.orthogonal`)."""
        return orthogonal(network, seed)

    def fit(
        self, x: Array, network: Network, *, seed: int = 0, metric: Array | None = None, progress: Progress = None
    ) -> list[Array]:
        """Fit in closed form at depth 1, else by gradient; `progress` gets the step, the number of steps, the error."""
        exact = super().fit(x, train(bottom := first(network)), seed=seed, metric=metric)
        if bottom is network:
            return widen(exact, network)
        return deepen(x, network, exact, seed=seed, steps=self.steps, progress=progress)
