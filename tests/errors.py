"""How well a weight was fitted, and how well its singular values say that it can be."""

from __future__ import annotations

import numpy as np

from tnc import Factorization


def error_of(weight, decomposition, network, seed=0):
    """Relative error of what is rebuilt from a fit."""
    return Factorization(network, decomposition.fit(weight, network, seed=seed), tuple(weight.shape)).error(weight)


def least_error(matrix, rank):
    """Relative error of the best matrix of that rank (Eckart and Young)."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)
