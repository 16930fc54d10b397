"""Block terms: a sum of Tuckers, one term is one, the counts, conformance."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.conformance import everywhere, shapes_for
from tests.errors import error_of
from tnc.contract import dense
from tnc.errors import RankError, WeightError
from tnc.fit import random_cores
from tnc.testing import SHAPES, assert_conforms

BTT = tnc.decompositions["btt"]


@everywhere("btt", "btt(terms=1)")
def test_conforms(decomposition, xp):
    assert_conforms(decomposition, xp, 1e-6, shapes_for(xp, cycles=True))


@pytest.mark.parametrize(
    ("decomposition", "shape"), [("btt(terms=3, order=2)", SHAPES[0]), ("btt(terms=3)", (3, 8, 20))]
)
def test_many_terms_conform(decomposition, shape):
    """With one library, a matrix and a small stack: all libraries meet two terms.

    A stack of factors would have a core of rank to the fourth power: least squares would take half a minute.
    """
    assert_conforms(decomposition, tnc.backends.get("numpy").xp, None, (shape,))


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_counts(terms):
    layer = BTT(terms=terms, rows=(4, 2, 4), columns=(3, 6, 2))
    matrix = layer.network((32, 36), (2, 3, 5))
    assert matrix.n_params == terms * (4 * 3 * 2 + 2 * 6 * 3 + 4 * 2 * 5 + 2 * 3 * 5)
    kernel = BTT(terms=terms).network((64, 32, 3, 5), (4, 2))
    assert kernel.n_params == terms * (64 * 4 + 32 * 2 + 4 * 2 * 15)
    assert BTT(terms=terms).network((5, 16, 36), 2).n_params == terms * (2 * (5 + 16 + 36) + 8)


def test_it_is_a_sum_of_tuckers(rng):
    network = BTT(terms=3).network((8, 6, 3, 3), (4, 2))
    rows, columns, core = random_cores(np.zeros(1), network, 0)
    expected = sum(np.einsum("or,is,rskl->oikl", rows[b], columns[b], core[b]) for b in range(3))
    np.testing.assert_allclose(dense(network, [rows, columns, core]), expected, rtol=1e-12, atol=1e-14)


def test_one_term_is_tucker(rng):
    weight, tucker = rng.standard_normal((16, 12, 3, 3)), tnc.decompositions["tucker"]()
    network = tucker.network(weight.shape, 3)
    assert BTT(terms=1).network(weight.shape, 3) == network
    assert error_of(weight, BTT(terms=1), network) <= 1.01 * error_of(weight, tucker, network)


def test_terms_help(rng):
    weight = rng.standard_normal((16, 12, 3, 3))
    sums = [BTT(terms=terms) for terms in (1, 2, 4)]
    errors = [error_of(weight, made, made.network(weight.shape, 2)) for made in sums]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: BTT(terms=0).network((8, 8), 2), WeightError, "a term at least"),
        (lambda: BTT(order=0).network((8, 8), 2), WeightError, "order=0"),
        (lambda: BTT(rows=(2, 4), columns=(2, 2, 2)).network((8, 8), 2), WeightError, "as many rows as columns"),
        (lambda: BTT(rows=(2, 2), columns=(2, 4)).network((8, 8), 2), WeightError, "cannot hold"),
        (lambda: BTT().network((8, 8), (1, 2)), RankError, "2 entries, but .* has 3 bonds"),
        (lambda: BTT().network((8, 8), 0), RankError, "rank 0"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()
