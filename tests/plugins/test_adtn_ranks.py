"""What the rank of an ADTN is, and how policies spend their allowance on it."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

import tnc
from tnc_plugins.adtn import ADTN


def spectral(side: int, power: float) -> np.ndarray:
    random = np.random.default_rng(1)
    left, right = (np.linalg.qr(random.normal(size=(side, side)))[0] for _ in range(2))
    return left * np.arange(1, side + 1) ** -power @ right


def test_the_rank_is_the_depth_where_none_is_stated():
    free = ADTN(depth=None)
    assert free.network((8, 8), 3) == ADTN(depth=3).network((8, 8), 1)
    assert free.network((8, 8), 99) == free.network((8, 8), 16)
    assert free.step == 1


def test_the_rank_is_the_gate_dimension_where_the_depth_is_stated():
    made = ADTN(depth=2)
    assert made.step == 2 and ADTN(dimension=3).step == 3
    assert made.network((64, 64), 1) == made.network((64, 64), 2)  # the published one is the least
    for rank in (4, 8):
        assert made.network((64, 64), rank) == ADTN(depth=2, dimension=rank).network((64, 64), 1)
    assert made.network((64, 64), 16) == made.network((64, 64), 13)  # 16 pads each axis to 256: 16 times the weight
    assert made.network((64, 64), 10**9) == made.network((64, 64), 64)


def test_policies_choose_a_depth():
    weight = spectral(32, 1.0)
    network = tnc.Ratio(0.5).choose(weight, ADTN(depth=None))
    assert network == ADTN(depth=3).network(weight.shape, 1)  # 52 + 2 * 144 = 340 of 1024


@pytest.mark.parametrize(("shape", "least"), [((384, 384), 0.5), ((1536, 384), 0.7), ((1024, 1024), 0.1)])
def test_a_ratio_takes_the_largest_gates_it_allows(shape, least):
    allowed = 0.1 * prod(shape)
    network = tnc.Ratio(0.1).choose(np.ones(shape), ADTN())
    assert least * allowed <= network.n_params <= allowed
    assert prod(network.shape) <= 8 * prod(shape)


def test_larger_gates_are_nearer_to_the_weight():
    weight = spectral(64, 1.0)
    found = [tnc.compress_weights({"w": weight}, "adtn", rank=ratio).report.rows[0] for ratio in (0.03, 0.5)]
    assert found[0].after == ADTN().network((64, 64), 2).n_params < found[1].after <= 0.5 * weight.size
    assert found[1].error < 0.7 * found[0].error
