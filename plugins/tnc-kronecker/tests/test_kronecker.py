"""The conformance kit checks every promise; below it, the one thing it cannot know: what the format means."""

from __future__ import annotations

import numpy as np
import pytest
from tnc_kronecker import Kronecker

from tnc import Factorization
from tnc.testing import assert_conforms


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_it_conforms(backend):
    """Matrices, odd lengths, kernels and stacks, on two array libraries."""
    assert_conforms(Kronecker(), backend)


def test_it_is_a_sum_of_kronecker_products():
    """The planted sum of two products comes back exactly, with the two cores being B and C."""
    rng = np.random.default_rng(0)
    b, c = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 4, 6))
    weight = sum(map(np.kron, b, c))
    kronecker = Kronecker(rows=(3, 4), columns=(5, 6))
    network = kronecker.network(weight.shape, 2)
    found = Factorization(network, kronecker.fit(weight, network), weight.shape)
    assert found.error(weight) < 1e-12
    assert found.n_params == 2 * (3 * 5 + 4 * 6)
    b, c = found.cores
    assert np.allclose(sum(map(np.kron, np.moveaxis(b, -1, 0), c)), weight)


def test_two_factors_are_needed():
    """A wrong number of factors is refused when the object is made."""
    with pytest.raises(ValueError, match=r"kronecker\(rows=\(2, 2, 2\)\): two factors"):
        Kronecker(rows=(2, 2, 2))
