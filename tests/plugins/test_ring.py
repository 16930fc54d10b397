"""Tensor rings: planted ones are found again, the counts, no worse than TensorLy, conformance."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import tensor_ring_als

import tnc
from tests.conformance import everywhere, shapes_for
from tests.errors import error_of
from tnc import Factorization
from tnc.contract import dense
from tnc.errors import RankError, WeightError
from tnc.fit import als, random_cores
from tnc.testing import assert_conforms

Ring = tnc.decompositions["ring"]


@pytest.mark.slow
@everywhere("ring", "ring(order=1)")
def test_conforms(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-6, shapes=shapes_for(xp, cycles=True))


@pytest.mark.parametrize("rank", [1, 3])
def test_counts(rank):
    fully_connected = Ring(rows=(4, 8), columns=(6, 2, 3)).network((32, 36), rank)
    assert fully_connected.n_params == rank**2 * (4 + 8 + 6 + 2 + 3)
    convolution = Ring(rows=(4, 8), columns=(6, 6)).network((32, 36, 3, 5), rank)
    assert convolution.n_params == rank**2 * (4 + 8 + 15 + 6 + 6)
    assert Ring().network((5, 16, 36), rank).n_params == rank**2 * (5 + 4 + 4 + 6 + 6)


def test_one_rank_per_bond():
    network = Ring(rows=(4, 8), columns=(6, 6)).network((32, 36), (2, 3, 4, 5))
    assert network.core_shapes == ((2, 4, 3), (3, 8, 4), (4, 6, 5), (5, 6, 2))


@pytest.mark.parametrize("shape", [(64, 64), (16, 25, 3, 3), (5, 16, 36)], ids=str)
def test_planted_rings_are_found_from_every_seed(shape):
    network = Ring().network(shape, 2)
    for seed in range(3):
        planted = dense(network, random_cores(np.zeros(1), network, 10 + seed))
        assert error_of(planted, Ring(), network, seed) <= 1e-6


def test_a_ring_cut_open_is_a_train(rng):
    # With the last bond of size 1 nothing closes the ring: it must be as good as the train's sweeps.
    weight, train = rng.standard_normal((16, 36)), tnc.decompositions["tt"]()
    ring, chain = Ring().network((16, 36), (1, 3, 3, 3)), train.network((16, 36), 3)
    assert ring.n_params == chain.n_params
    assert error_of(weight, Ring(), ring) <= 1.02 * error_of(weight, train, chain)


def test_the_start_helps(rng):
    # Ranks above what a mode can use: TR-SVD alone would leave zeros, and least squares would never leave them.
    weight = rng.standard_normal((16, 16))
    network = Ring().network((16, 16), 5)
    # Where both represent the weight exactly, what is left is rounding.
    assert error_of(weight, Ring(), network) <= max(1.05 * error_of_random(weight, network), 1e-12)


def error_of_random(weight, network):
    return Factorization(network, als(weight, network), tuple(weight.shape)).error(weight)


def test_no_worse_than_tensorly(place, rng):
    weight, network = rng.standard_normal((36, 64)), Ring().network((36, 64), 3)
    theirs = min(
        np.linalg.norm(weight.reshape(6, 6, 8, 8) - tensorly.tr_to_tensor(found)) / np.linalg.norm(weight)
        for found in (tensor_ring_als(weight.reshape(6, 6, 8, 8), [3] * 5, random_state=seed) for seed in range(3))
    )
    assert error_of(place.from_numpy(weight), Ring(), network) <= 1.005 * theirs


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Ring(order=0).network((8, 8), 2), WeightError, "order=0"),
        (lambda: Ring(rows=(2, 3)).network((8, 8), 2), WeightError, "cannot hold"),
        (lambda: Ring().network((8, 8), (1, 2)), RankError, "2 entries, but .* has 4 bonds"),
        (lambda: Ring().network((8, 8), 0), RankError, "rank 0"),
        (
            lambda: Ring().fit(np.eye(8), Ring().network((8, 8), 2), metric=np.eye(7)),
            WeightError,
            "not one for a weight",
        ),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
