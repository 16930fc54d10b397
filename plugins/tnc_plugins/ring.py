"""Tensor ring: a tensor train whose ends meet."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod

import numpy as np
from array_api_compat import array_namespace

from tnc import Decomposition, Network
from tnc.contract import contract, pad
from tnc.fit import als, tensorize, tree_svd, unfold
from tnc.fit.linalg import balance, left_svd, like, norm
from tnc.modes import modes
from tnc.typing import Array, Rank, Shape

__all__ = ["Ring"]


@dataclass(frozen=True)
class Ring(Decomposition):
    """``X[i_1, ..., i_N] = tr G_1[i_1] ... G_N[i_N]``: row modes, then the kernel as one mode, then column modes.

    Core shapes ``(R_k, I_k, R_k+1)``, ``R_N = R_0``; parameters ``sum R_k I_k R_k+1``. Alternating least squares from
    TR-SVDs, one for each position at which the ring can be cut open.

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
    Zhao et al. (2016); Wang et al. (2018) for layers.
    """

    order: int = 2
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def network(self, shape: Shape, rank: Rank) -> Network:
        """``"r0 m0 r1, r1 m1 r2, r2 k0 k1 r3, r3 n0 r4, r4 n1 r0 -> (m0 m1) (n0 n1) k0 k1"``."""
        named = modes(shape, self.order, self.rows, self.columns)
        cores = [f"r{k} {mode} r{(k + 1) % len(named.sites)}" for k, mode in enumerate(named.sites)]
        return Network.of_rank(f"{', '.join(cores)} -> {named.right}", named.sizes, rank)

    def fit(self, x: Array, network: Network, *, seed: int = 0, metric: Array | None = None) -> list[Array]:
        if metric is not None:
            return super().fit(x, network, seed=seed, metric=metric)
        cuts = (_cut(x, network, k, seed) for k in range(len(network.operands)))
        return als(x, network, guesses=cuts, starts=1, seed=seed)


def _cut(x: Array, network: Network, k: int, seed: int) -> list[Array]:
    """TR-SVD that starts with core `k`: its two bonds share its singular vectors. A chain is fitted to the rest."""
    xp, size, names = array_namespace(x), dict(network.sizes), network.operands[k:] + network.operands[:k]
    left, right, rows = names[0][0], names[1][0], tuple(i for i in names[0] if i in network.outer)
    tensor = tensorize(x, network)
    matrix, rest = unfold(tensor, network.outer, rows)
    most = min(matrix.shape)
    size[left] = min(size[left], max(isqrt(most), most // size[right]))
    size[right], kept = min(size[right], most // size[left]), (*rows, left, right)
    basis = xp.reshape(left_svd(matrix, size[left] * size[right], seed=seed), tuple(size[i] for i in kept))
    pattern = f"{', '.join(map(' '.join, names[1:]))} -> {' '.join((right, *rest, left))}"
    chain = Network(pattern, {i: size[i] for core in names[1:] for i in core})
    tail, _ = tree_svd(contract([kept, network.outer], chain.outer, [basis, tensor]), chain, seed=seed)
    rng, cores = np.random.default_rng(seed), []
    for core, indices in zip(balance([contract([kept], names[0], [basis]), *tail]), names, strict=True):
        full = tuple(network.sizes[i] for i in indices)  # noise where it has zeros: no sweep would leave them
        noise = like(0.1 * norm(core) * prod(core.shape) ** -0.5 * rng.standard_normal(full), x)
        cores.append(pad(core, full) + noise * (1 - pad(xp.ones_like(core), full)))
    return cores[len(cores) - k :] + cores[: len(cores) - k]
