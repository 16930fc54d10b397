"""Plans: made once for any batch, priced by their products, refused where an index leads nowhere."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.networks import NETWORKS, cores_of, einsum
from tnc.contract import apply, plan
from tnc.errors import PatternError


def test_plans_are_made_once_and_hold_at_any_batch(rng):
    network = NETWORKS["mpo"]
    key = (("*", *network.outer[3:]), *network.operands), ("*", "m0", "m1", "m2"), (("*", 8), *network.sizes.items())
    first = plan(*key)
    assert plan(*key) is first and hash(first) == hash(plan(*key))
    assert first.flops >= 2 * 8 * network.shape[0] and first.peak >= 8 * network.shape[0]
    cores = cores_of(network, rng)
    for batch in (5, 8):
        x = rng.standard_normal((batch, 30))
        np.testing.assert_allclose(apply(network, cores, x), x @ einsum(network, cores).T)


def test_flops_of_a_plan_are_those_of_its_products():
    made = plan((("m", "r"), ("r", "n")), ("m", "n"), (("m", 3), ("r", 4), ("n", 5)))
    assert made.flops == 2 * 3 * 4 * 5 and made.peak == 15


def test_a_dangling_index_is_refused():
    with pytest.raises(PatternError, match="index 'r' stands in one operand only"):
        plan((("m", "r"), ("n",)), ("m", "n"), (("m", 2), ("r", 2), ("n", 2)))
