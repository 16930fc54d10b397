"""Matrix product operators: the published counts, the layout against Kronecker products, conformance."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.conformance import everywhere, shapes_for
from tnc import Factorization
from tnc.errors import RankError, WeightError
from tnc.testing import assert_conforms

MPO = tnc.decompositions["mpo"]

V1, V2 = ((4, 7, 7, 4), (4, 4, 4, 4), (1, 10, 1, 1)), ((1, 2, 2, 7, 7, 2, 2, 1), (2,) * 8, (1, 1, 1, 2, 5, 1, 1, 1))
LENET = ((2, 10, 10, 2), (2, 5, 6, 2), (2, 3, 7, 2), (1, 5, 2, 1))
VGG = [
    *[((2, 8, 8, 8, 2), (2, 8, 8, 8, 2), 4)] * 2,
    ((4, 4, 4, 4, 2), (4, 4, 8, 8, 4), 4),
    ((4, 4, 8, 8, 4), (4, 4, 8, 8, 4), 4),
    ((4, 4, 8, 8, 4), (1, 10, 1, 1, 1), 4),
]
WRN = [*[((2, 4, 4, 4, 4, 4, 4, 2), (2, 4, 4, 4, 4, 4, 4, 2), 4)] * 2, ((4, 4, 4, 4), (1, 5, 2, 1), 3)]


def chain(modes, ranks):
    return [(columns, rows, rank) for columns, rows, rank in zip(modes, modes[1:], ranks, strict=False)]


def networks(layers):
    return [
        MPO(rows=rows, columns=columns).network((int(np.prod(rows)), int(np.prod(columns))), rank)
        for columns, rows, rank in layers
    ]


@everywhere("mpo", "mpo(order=1)", "mpo(order=2)", "mpo(order=5)")
def test_conforms(decomposition, xp):
    assert_conforms(decomposition, xp, recovers=1e-10, shapes=shapes_for(xp))


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        *[(chain(V1, (d, d)), n) for d, n in ((4, 1_760), (8, 6_720), (16, 26_240), (26, 68_640))],
        *[(chain(V2, (d, d)), n) for d, n in ((4, 1_088), (8, 4_288), (16, 17_024))],
        (chain(LENET, (4, 4, 2)), 2_860),
        (VGG, 10_944),
        (WRN, 3_412),
        ([((4, 4, 7, 4), (1, 5, 2, 1), 4)], 576),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_published_counts(layers, count):
    assert sum(network.n_params for network in networks(layers)) == count


def test_published_dense_counts():
    assert sum(np.prod(n.shape) for n in networks(chain(LENET, (4, 4, 2)))) == 58_920


def test_clipping_is_a_step_of_its_own():
    plain = networks(chain(V1, (16, 16)))
    assert sum(network.n_params for network in plain) == 26_240
    assert sum(network.clipped().n_params for network in plain) == 17_696


def test_a_kronecker_product_has_rank_one(rng):
    a, b, c = (rng.standard_normal(shape) for shape in ((2, 3), (4, 2), (3, 5)))
    weight = np.kron(np.kron(a, b), c)
    mpo = MPO(rows=(2, 4, 3), columns=(3, 2, 5))
    network = mpo.network(weight.shape, 1)
    assert network.core_shapes == ((2, 3, 1), (1, 4, 2, 1), (1, 3, 5))
    assert Factorization(network, mpo.fit(weight, network), weight.shape).error(weight) < 1e-14


def test_a_sum_of_kronecker_products_is_the_best_of_its_rank(rng):
    # Two cores are the problem of Van Loan and Pitsianis: an SVD of the rearranged matrix.
    weight, mpo = rng.standard_normal((6, 12)), MPO(rows=(2, 3), columns=(3, 4))
    values = np.linalg.svd(weight.reshape(2, 3, 3, 4).transpose(0, 2, 1, 3).reshape(6, 12), compute_uv=False)
    for rank in range(1, 7):
        network = mpo.network((6, 12), rank)
        error = Factorization(network, mpo.fit(weight, network), (6, 12)).error(weight)
        assert error == pytest.approx(np.linalg.norm(values[rank:]) / np.linalg.norm(values), abs=1e-12)


def test_balanced_factors():
    assert MPO(order=3).network((64, 512), 4).core_shapes == ((4, 8, 4), (4, 4, 8, 4), (4, 4, 8))


def test_prime_lengths_are_padded():
    network = MPO(order=3).network((50257, 64), 2)
    assert 50257 <= network.shape[0] <= 1.05 * 50257 and network.holds((50257, 64))


def test_kernels_and_stacks_have_a_core_of_their_own():
    assert MPO(order=2).network((8, 6, 3, 5), 2).core_shapes[0] == (3, 5, 2)
    assert MPO(order=2).network((5, 8, 40), 2).core_shapes[0] == (5, 2)
    assert len(MPO(order=2).network((8, 6, 1, 1), 2).core_shapes) == 2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: MPO(order=0), WeightError, "order=0"),
        (lambda: MPO(rows=(4, 4)), WeightError, "as many rows as columns"),
        (lambda: MPO(rows=(4, 4), columns=(4, 4, 4)), WeightError, "as many rows as columns"),
        (lambda: MPO(rows=(4, 4), columns=(4, 4)).network((17, 16), 2), WeightError, "cannot hold"),
        (lambda: MPO().network((64,), 2), WeightError, "fewer than two axes"),
        (lambda: MPO().network((64, 64), (2, 2, 2)), RankError, "3 entries, but .* has 2 bonds"),
        (lambda: MPO().network((64, 64), 0), RankError, "rank 0"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
