"""How long fits take, of a matrix and of a convolution kernel."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import tnc

short = pytest.mark.short
FITS = [
    pytest.param("svd", "matrix", marks=short),
    pytest.param("svd", "kernel"),
    pytest.param("tucker", "matrix"),
    pytest.param("tucker", "kernel", marks=short),
    pytest.param("mpo", "matrix", marks=short),
    pytest.param("mpo", "kernel"),
    pytest.param("tt", "matrix"),
    pytest.param("cp", "matrix", marks=short),
    pytest.param("cp", "kernel"),
    pytest.param("ring", "matrix", marks=short),
    pytest.param("stt", "matrix"),
    pytest.param("adtn", "matrix", marks=short),
]
RANK = 8


@cache
def weight(kind: str) -> np.ndarray:
    """A matrix with singular values k^-0.7, or a kernel of low multilinear rank with noise."""
    random = np.random.default_rng(0)
    if kind == "matrix":
        left, right = (np.linalg.qr(random.normal(size=(256, 256)))[0] for _ in range(2))
        return (left * np.arange(1, 257) ** -0.7 @ right).astype(np.float32)
    core, noise = random.normal(size=(24, 12, 3, 3)), random.normal(size=(64, 32, 3, 3))
    exact = np.einsum("abkl,oa,ib->oikl", core, random.normal(size=(64, 24)), random.normal(size=(32, 12)))
    return (exact + 0.1 * exact.std() * noise).astype(np.float32)


@pytest.mark.parametrize(("name", "kind"), FITS)
def test_fit(benchmark, name, kind):
    dense, decomposition = weight(kind), tnc.decompositions[name]()
    network = decomposition.network(dense.shape, RANK)
    cores = benchmark.pedantic(decomposition.fit, (dense, network), rounds=8 if name == "svd" else 2)
    assert tnc.Factorization(network, list(cores), dense.shape).error(dense) < 1
