"""Tucker: HOOI no worse than TensorLy's, Tucker-2 for kernels, the counts, conformance."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import partial_tucker, tucker

import tnc
from tests.conformance import everywhere, shapes_for
from tests.errors import error_of, least_error
from tnc.errors import RankError, WeightError
from tnc.testing import assert_conforms

Tucker = tnc.decompositions["tucker"]


@everywhere("tucker", "tucker(order=1)", "tucker(order=3)")
def test_conforms(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-10, shapes=shapes_for(xp))


def test_counts():
    kernel = Tucker().network((8, 6, 3, 5), (4, 2))
    assert kernel.core_shapes == ((8, 4), (6, 2), (4, 2, 3, 5))
    assert kernel.n_params == 8 * 4 + 6 * 2 + 4 * 2 * 15
    matrix = Tucker().network((64, 36), 3)
    assert matrix.core_shapes == ((8, 3), (8, 3), (6, 3), (6, 3), (3, 3, 3, 3))
    assert Tucker(order=1).network((64, 36), 3).core_shapes == ((64, 3), (36, 3), (3, 3))
    assert Tucker().network((5, 8, 40), 2).core_shapes == ((5, 2), (8, 2), (40, 2), (2, 2, 2))


@pytest.mark.parametrize("ranks", [(2, 2), (5, 3)], ids=str)
def test_kernels_are_no_worse_than_tensorly(ranks, place, rng):
    weight = rng.standard_normal((16, 12, 3, 3))
    (core, factors), _ = partial_tucker(weight, rank=list(ranks), modes=[0, 1], init="svd", n_iter_max=200, tol=1e-8)
    rebuilt = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    theirs = np.linalg.norm(weight - rebuilt) / np.linalg.norm(weight)
    assert error_of(place.from_numpy(weight), Tucker(), Tucker().network(weight.shape, ranks)) <= 1.001 * theirs


def test_matrices_are_no_worse_than_tensorly(place, rng):
    weight = rng.standard_normal((36, 64))
    core, factors = tucker(weight.reshape(6, 6, 8, 8), [3] * 4, init="svd", n_iter_max=200, tol=1e-8)
    rebuilt = tensorly.tucker_to_tensor((core, factors)).reshape(36, 64)
    theirs = np.linalg.norm(weight - rebuilt) / np.linalg.norm(weight)
    assert error_of(place.from_numpy(weight), Tucker(), Tucker().network((36, 64), 3)) <= 1.001 * theirs


def test_of_order_one_a_matrix_has_its_svd(rng):
    weight = rng.standard_normal((12, 18))
    error = error_of(weight, Tucker(order=1), Tucker(order=1).network((12, 18), 5))
    assert error == pytest.approx(least_error(weight, 5), rel=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Tucker(order=0).network((8, 8), 2), WeightError, "order=0"),
        (lambda: Tucker().network((8,), 2), WeightError, "fewer than two axes"),
        (lambda: Tucker().network((8, 8, 3, 3), (1, 2, 3)), RankError, "3 entries, but .* has 2 bonds"),
        (lambda: Tucker().network((8, 8, 3, 3), 0), RankError, "rank 0"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
