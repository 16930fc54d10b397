"""A weight's norm does not matter to any fit: what is rebuilt scales with it, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest

import tnc

SPECS = [*tnc.decompositions, "adtn(depth=2, steps=20)"]
SCALES = [("float64", 2.0**-498), ("float64", 2.0**100), ("float32", 2.0**-66), ("float32", 2.0**50)]
"""About 1e-150, 1e30, 1e-20 and 1e15; powers of two, for other rounding may lead least squares to another minimum."""


def error(spec, weight, scale, dtype):
    """Relative error in units of the weight, so that nothing of the test itself leaves the range of `dtype`."""
    made = tnc.decompositions.parse(spec)
    network = made.network(weight.shape, 2 * made.step)
    found = tnc.Factorization(network, made.fit((scale * weight).astype(dtype), network), weight.shape)
    return np.linalg.norm(found.dense().astype("float64") / scale - weight)


@pytest.mark.pairwise("the scale is taken off before the shape matters")
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("shape", [(24, 36), (8, 6, 3, 3)], ids=str)
def test_any_norm_is_fitted_as_well_as_one(spec, dtype, scale, shape, rng):
    weight = rng.standard_normal(shape)
    weight /= np.linalg.norm(weight)
    assert error(spec, weight, scale, dtype) <= 1.002 * error(spec, weight, 1.0, dtype)
