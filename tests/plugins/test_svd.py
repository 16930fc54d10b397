"""Truncated SVD: the best of its rank, the count, conformance."""

from __future__ import annotations

import pytest

import tnc
from tests.errors import error_of, least_error
from tnc.testing import assert_conforms

SVD = tnc.decompositions["svd"]


def test_conforms(xp):
    assert_conforms("svd", xp, recovers=1e-10)


@pytest.mark.parametrize(("shape", "count"), [((12, 18), 30), ((8, 6, 3, 3), 8 + 54), ((3, 8, 40), 24 + 40)], ids=str)
@pytest.mark.parametrize("rank", [1, 5])
def test_counts(shape, count, rank):
    assert SVD().network(shape, rank).n_params == rank * count


@pytest.mark.parametrize(
    ("shape", "rows"), [((12, 18), 12), ((18, 12), 18), ((8, 6, 3, 3), 8), ((3, 8, 40), 24)], ids=str
)
def test_the_best_of_its_rank(shape, rows, place, rng):
    weight = rng.standard_normal(shape)
    for rank in (1, 4):
        network = SVD().network(shape, rank)
        error = error_of(place.from_numpy(weight), SVD(), network)
        assert error == pytest.approx(least_error(weight.reshape(rows, -1), rank), rel=1e-10)
