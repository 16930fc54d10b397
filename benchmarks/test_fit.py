"""Fits: ours against TensorLy's on the same tensors, in time and in error.

Each pair fits the same format at the same ranks, so the errors must agree to 0.1 %.
"""

from __future__ import annotations

import numpy as np
import pytest

import tnc

RANK = 8


def relative_error(weight: np.ndarray, approximation: np.ndarray) -> float:
    return float(np.linalg.norm(weight - approximation) / np.linalg.norm(weight))


def tensorly_matrix_train(weight: np.ndarray, factors: tuple[int, ...], rank: int) -> np.ndarray:
    decomposition = pytest.importorskip("tensorly.decomposition")
    tensor = weight.reshape(*factors, *factors)
    ranks = [1, *[rank] * (len(factors) - 1), 1]
    return decomposition.tensor_train_matrix(tensor, ranks).to_matrix()


def tensorly_tucker(kernel: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    # tensorly 0.10 is silently wrong where a rank exceeds its mode.
    clamped = [min(rank, mode) for rank, mode in zip(ranks, kernel.shape, strict=True)]
    return tensorly.tucker_to_tensor(decomposition.tucker(kernel, clamped, init="svd", n_iter_max=10))


@pytest.mark.benchmark(group="fit-mpo")
class TestMPO:
    def test_tnc(self, benchmark, weight, factors):
        mpo = tnc.decompositions["mpo"](rows=factors, columns=factors)
        network = mpo.network(weight.shape, RANK)
        cores = benchmark(mpo.fit, weight, network)
        ours = tnc.Factorization(network, cores, weight.shape).dense()
        theirs = relative_error(weight, tensorly_matrix_train(weight, factors, RANK))
        assert relative_error(weight, ours) <= 1.001 * theirs

    def test_tensorly(self, benchmark, weight, factors):
        benchmark(tensorly_matrix_train, weight, factors, RANK)


@pytest.mark.benchmark(group="fit-tucker")
class TestTucker:
    ranks = (16, 8, 3, 3)

    def test_tnc(self, benchmark, kernel):
        tucker = tnc.decompositions["tucker"]()
        network = tucker.network(kernel.shape, self.network_rank(tucker, kernel))
        cores = benchmark(tucker.fit, kernel, network)
        ours = tnc.Factorization(network, cores, kernel.shape).dense()
        theirs = relative_error(kernel, tensorly_tucker(kernel, self.ranks))
        assert relative_error(kernel, ours) <= 1.001 * theirs

    def test_tensorly(self, benchmark, kernel):
        benchmark(tensorly_tucker, kernel, self.ranks)

    def network_rank(self, tucker: tnc.Decomposition, kernel: np.ndarray) -> tuple[int, ...]:
        """The same ranks for as many bonds as our format has: two for a kernel, or one per mode."""
        return self.ranks[: len(tucker.network(kernel.shape, 1).bonds)]


@pytest.mark.benchmark(group="fit-svd")
class TestSVD:
    def test_tnc(self, benchmark, weight):
        svd = tnc.decompositions["svd"]()
        network = svd.network(weight.shape, RANK)
        cores = benchmark(svd.fit, weight, network)
        ours = tnc.Factorization(network, cores, weight.shape).dense()
        tail = np.linalg.svd(weight, compute_uv=False)[RANK:]
        assert relative_error(weight, ours) <= 1.001 * np.linalg.norm(tail) / np.linalg.norm(weight)

    def test_numpy(self, benchmark, weight):
        benchmark(np.linalg.svd, weight, full_matrices=False)
