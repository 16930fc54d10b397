"""Cores to start a fit from."""

from __future__ import annotations

from math import prod

import numpy as np
from array_api_compat import array_namespace

from tnc.contract.recipes import dense
from tnc.fit.linalg import balance, left_svd, like, norm
from tnc.fit.unfolding import ordered, unfold
from tnc.network import Network
from tnc.typing import Array

__all__ = ["random_cores"]


def random_cores(x: Array, network: Network, seed: int) -> list[Array]:
    """Normally distributed cores; entries of the rebuilt weight have about unit variance.

    Parameters
    ----------
    x : array
        Gives library, dtype and device.
    network : Network
    seed : int

    Returns
    -------
    list of array
        Of `network.core_shapes`.
    """
    rng = np.random.default_rng(seed)
    deviation = prod(network.ranks) ** (-0.5 / len(network.core_shapes))
    return [like(deviation * rng.standard_normal(shape), x) for shape in network.core_shapes]


def singular_cores(x: Array, network: Network, seed: int) -> list[Array]:
    """Cores of singular vectors, scaled to rebuild a tensor of norm one.

    The weight is unfolded: the outer indices of a core against all others. The leading left singular vectors become the
    core. Where its bonds have more values than there are vectors, the rest is noise.

    Parameters
    ----------
    x : array
        The weight, with one axis per outer index.
    network : Network
    seed : int
        Seed of the noise and of randomized SVDs.
    """
    xp, cores = array_namespace(x), random_cores(x, network, seed)
    for k, names in enumerate(network.operands):
        rows = [i for i in names if i in network.outer]
        if not rows:
            continue
        inner = [i for i in names if i not in rows]
        matrix, _ = unfold(x, network.outer, rows)  # (rows, all other outer indices)
        basis = left_svd(matrix, prod(network.sizes[i] for i in inner), seed=seed)
        noise = xp.reshape(ordered(cores[k], names, [*rows, *inner]), (basis.shape[0], -1))
        basis = xp.concat([basis, noise[:, basis.shape[1] :] / basis.shape[0] ** 0.5], axis=1)  # (rows, inner)
        shape = tuple(network.sizes[i] for i in [*rows, *inner])
        cores[k] = ordered(xp.reshape(basis, shape), [*rows, *inner], names)
    return balance(cores, 1 / (norm(dense(network, cores)) or 1.0))
