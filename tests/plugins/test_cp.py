"""Canonical polyadic: planted terms are found again, the counts, no worse than TensorLy, conformance."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import parafac

import tnc
from tests.conformance import everywhere, shapes_for
from tests.errors import error_of, least_error
from tnc.errors import RankError, WeightError
from tnc.testing import assert_conforms

CP = tnc.decompositions["cp"]


@everywhere("cp", "cp(order=1)")
def test_conforms(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-6, shapes=shapes_for(xp, cycles=True))


def test_counts():
    assert CP(rows=(4, 8), columns=(6, 2, 3)).network((32, 36), 7).n_params == 7 * (4 + 8 + 6 + 2 + 3)
    assert CP().network((64, 32, 3, 5), 7).core_shapes == ((64, 7), (3, 5, 7), (32, 7))
    assert CP().network((5, 16, 36), 7).core_shapes == ((5, 7), (16, 7), (36, 7))
    assert CP().network((64, 32, 1, 1), 7).core_shapes == ((64, 7), (32, 1, 1, 7))


def test_the_rank_may_exceed_every_mode():
    network = CP().network((12, 18), 40)
    assert network.clipped() == network


def test_kernels_are_no_worse_than_tensorly(place, rng):
    factors = [rng.standard_normal((n, 6)) for n in (16, 12, 9)]
    weight = np.einsum("or,ir,kr->oik", *factors)
    weight += 0.3 * weight.std() * rng.standard_normal(weight.shape)
    theirs = min(
        np.linalg.norm(weight - tensorly.cp_to_tensor(parafac(weight, 6, init=init, random_state=0, n_iter_max=500)))
        for init in ("svd", "random")
    )
    kernel = place.from_numpy(weight.reshape(16, 12, 3, 3))
    mine = error_of(kernel, CP(), CP().network((16, 12, 3, 3), 6))
    assert mine <= 1.001 * theirs / np.linalg.norm(weight)


def test_of_order_one_a_matrix_has_its_svd(rng):
    weight = rng.standard_normal((12, 18))
    error = error_of(weight, CP(order=1), CP(order=1).network((12, 18), 5))
    assert error == pytest.approx(least_error(weight, 5), rel=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: CP(order=0).network((8, 8), 2), WeightError, "order=0"),
        (lambda: CP(rows=(2, 3)).network((8, 8), 2), WeightError, "cannot hold"),
        (lambda: CP().network((8, 8), (1, 2)), RankError, "2 entries, but .* has 1 bonds"),
        (lambda: CP().network((8, 8), 0), RankError, "rank 0"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
