"""Tensor trains of matrices: the middle bond is the matrix rank, the counts, conformance."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.conformance import everywhere, shapes_for
from tests.errors import error_of, least_error
from tnc.errors import RankError, WeightError
from tnc.testing import assert_conforms

TT = tnc.decompositions["tt"]


@everywhere("tt", "tt(order=1)", "tt(order=3)")
def test_conforms(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-10, shapes=shapes_for(xp))


def test_counts():
    tt = TT(rows=(4, 8), columns=(6, 2, 3))
    matrix = tt.network((32, 36), (2, 3, 4, 5))
    assert matrix.core_shapes == ((4, 2), (2, 8, 3), (3, 6, 4), (4, 2, 5), (5, 3))
    assert matrix.n_params == 4 * 2 + 2 * 8 * 3 + 3 * 6 * 4 + 4 * 2 * 5 + 5 * 3
    kernel = TT().network((64, 32, 3, 5), 4)
    assert kernel.core_shapes == ((8, 4), (4, 8, 4), (4, 3, 5, 4), (4, 8, 4), (4, 4))
    assert TT().network((5, 16, 36), 2).core_shapes == ((5, 2), (2, 4, 2), (2, 4, 2), (2, 6, 2), (2, 6))


def test_a_pointwise_kernel_needs_no_core_of_its_own():
    assert TT().network((64, 36, 1, 1), 2).core_shapes == ((8, 2), (2, 8, 2), (2, 6, 1, 1, 2), (2, 6))


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_the_middle_bond_is_the_rank_of_the_matrix(rank, place, rng):
    weight = rng.standard_normal((24, 20))
    tt = TT(rows=(4, 6), columns=(4, 5))
    network = tt.network(weight.shape, (4, rank, 5))
    error = error_of(place.from_numpy(weight), tt, network)
    assert error == pytest.approx(least_error(weight, rank), rel=1e-9)


def test_no_worse_than_left_to_right(rng):
    weight, rank = rng.standard_normal((36, 64)), 5
    rest, cores = weight.reshape(6, -1), []
    for mode in (6, 8, 8):
        left, values, right = np.linalg.svd(rest, full_matrices=False)
        cores.append(left[:, :rank])
        rest = (values[:rank, None] * right[:rank]).reshape(min(rank, len(values)) * mode, -1)
    missed = 1 - np.linalg.norm(rest) ** 2 / np.linalg.norm(weight) ** 2
    network = TT().network(weight.shape, rank)
    assert error_of(weight, TT(), network) <= 1.001 * np.sqrt(missed)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TT(order=0).network((8, 8), 2), WeightError, "order=0"),
        (lambda: TT(rows=(2, 3)).network((8, 8), 2), WeightError, r"rows=\(2, 3\) cannot hold the 8 rows"),
        (lambda: TT(columns=(2, 3)).network((8, 8), 2), WeightError, "cannot hold the 8 columns"),
        (lambda: TT().network((8,), 2), WeightError, "fewer than two axes"),
        (lambda: TT().network((8, 8), (1, 2)), RankError, "2 entries, but .* has 3 bonds"),
        (lambda: TT().network((8, 8), 0), RankError, "rank 0"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
