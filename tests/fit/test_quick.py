"""Quick fits predict errors: near those of fits to the end, in the weight's library and dtype."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.fit.test_calibrated import error, made, metric_for
from tests.ranked import weight_of
from tnc import Factorization
from tnc.fit.metric import Metric
from tnc.fit.quick import quick

NAMES = ["svd", "tt", "tucker", "cp", "sttu", "btt"]


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_near_a_fit_to_the_end(name, weighed, rng):
    x, plugin = weight_of((12, 18), power=0.8), made(name)
    network = plugin.network(x.shape, 2 * plugin.step)
    metric = metric_for(x.shape, rng, rows=True) if weighed else Metric(())
    slow = plugin.fit(x, network, metric=metric if weighed else None)
    cores = quick(x, network, metric if weighed else None)
    assert error(metric, x, network, slow) / 1.05 <= error(metric, x, network, cores)
    assert error(metric, x, network, cores) <= 1.25 * error(metric, x, network, slow) + 1e-9


@pytest.mark.parametrize("name", ["svd", "cp", "adtn(depth=2)"])
def test_on_every_library(name, place, rng):
    x, plugin = rng.standard_normal((6, 8)).astype(np.float32), made(name)
    given, network, metric = place.from_numpy(x), plugin.network(x.shape, 2), metric_for(x.shape, rng)
    for each in (None, metric.like(given)):
        cores = quick(given, network, each)
        assert all(core.dtype == given.dtype for core in cores)
        assert 0 < Factorization(network, cores, x.shape).error(given) < 2


@pytest.mark.parametrize("scale", [1e-20, 1e25])
@pytest.mark.parametrize("name", ["svd", "tt", "cp", "adtn", "adtn(depth=2)"])
def test_any_scale(name, scale, rng):
    plugin, x, metric = made(name), rng.standard_normal((6, 8)), metric_for((6, 8), rng)
    network = plugin.network(x.shape, 2)
    for each in (None, metric):
        plain, scaled = (
            Factorization(network, [c.astype(float) for c in quick((s * x).astype(np.float32), network, each)], x.shape)
            for s in (1.0, scale)
        )
        assert scaled.error(scale * x) == pytest.approx(plain.error(x), rel=0.05)


@pytest.mark.parametrize("name", ["svd", "cp", "tt"])
def test_zeros(name):
    plugin = tnc.decompositions[name]()
    network = plugin.network((6, 8), 2)
    for metric in (None, metric_for((6, 8), np.random.default_rng(0))):
        assert not Factorization(network, quick(np.zeros((6, 8)), network, metric), (6, 8)).dense().any()


def test_the_same_seed_gives_the_same_cores(rng):
    x, plugin = rng.standard_normal((6, 8)), made("adtn")
    network = plugin.network(x.shape, 2)
    one, same = (quick(x, network, seed=3) for _ in range(2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
