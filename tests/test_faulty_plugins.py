"""A plugin that refuses, or returns cores that cannot be used: the error names the weight it was about."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tnc import compress_weights
from tnc.errors import RankError, WeightError

torch = pytest.importorskip("torch")
MPO, SVD = (tnc.decompositions[name] for name in ("mpo", "svd"))


def test_errors_of_a_plugin_name_the_layer(rng):
    weights = {"deep.weight": rng.standard_normal((16, 24))}
    with pytest.raises(WeightError, match=r"deep.weight: .*cannot hold"):
        compress_weights(weights, MPO(rows=(2, 2), columns=(2, 2)), rank=2)
    with pytest.raises(RankError, match=r"deep.weight: rank \(1, 2, 3, 4\) has 4 entries"):
        compress_weights(weights, "mpo", rank=(1, 2, 3, 4))
    with pytest.raises(RankError, match=r"a, b: budget:0.001"):
        compress_weights(
            {"a": rng.standard_normal((4, 4)), "b": rng.standard_normal((5, 5))}, "svd", rank="budget:0.001"
        )


@pytest.mark.parametrize(
    ("scale", "says"),
    [(np.nan, "error of nan"), (np.inf, "error of "), (1e150, "error of 9.9"), (-1.0, "error of 2,")],
)
def test_fits_no_better_than_zeros_are_not_taken(scale, says, rng):
    class Broken(SVD):
        def fit(self, x, network, *, seed=0, metric=None):
            return [core * scale if k else core for k, core in enumerate(super().fit(x, network))]

    weight = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 8)) + 0.1 * rng.standard_normal((6, 8))
    checkpoint = compress_weights({"w": weight}, Broken(), rank=2)
    row = checkpoint.report.rows[0]
    assert row.method == "dense" and row.after == 48 and checkpoint["w"] is weight
    assert says in row.note and "no better than a weight of zeros" in row.note


def test_cores_of_another_shape_are_refused(rng):
    class Broken(SVD):
        def fit(self, x, network, *, seed=0, metric=None):
            return super().fit(x, network)[::-1]

    with pytest.raises(WeightError, match=r"w: cores of shapes .* do not fit"):
        compress_weights({"w": rng.standard_normal((6, 8))}, Broken(), rank=2)


def test_half_precision_that_overflows_is_not_taken():
    # The weight is finite in float16, its scaled cores need not be.
    class Loud(SVD):
        def fit(self, x, network, *, seed=0, metric=None):
            left, right = super().fit(x, network)
            return [left * 1e6, right / 1e6]

    weight = torch.full((6, 8), 100.0, dtype=torch.float16)
    row = compress_weights({"w": weight}, Loud(), rank=1).report.rows[0]
    assert row.method == "dense" and "loud ends at an error of inf" in row.note
