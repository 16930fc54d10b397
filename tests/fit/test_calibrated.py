"""Fits in a metric: never worse there than fits of the weight, the best where that is known, safe on any metric."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

import tnc
from tests.ranked import CP
from tnc import Decomposition, Factorization, Network
from tnc.decomposition import InRoles
from tnc.errors import WeightError
from tnc.fit import Factor, Metric, calibrated, random_cores, tree_svd, whitened
from tnc.fit.least_squares import descend
from tnc.fit.metric_sweep import Weights
from tnc.network import Feed
from tnc.roles import AxisRoles

FIRST = [name for name in tnc.decompositions if name != "auto"]


@dataclass(frozen=True)
class Pairs(Decomposition):
    """A stranger: sums of Kronecker products."""

    def network(self, shape, rank):
        tail = [f"k{k}" for k in range(len(shape) - 2)]
        names = dict(zip(["m", "n", *tail], shape, strict=True)) | {"a": 2, "b": -(-shape[0] // 2)}
        del names["m"]
        return Network.of_rank(f"a r, b {' '.join(['n', *tail])} r -> (a b) {' '.join(['n', *tail])}", names, rank)


@dataclass(frozen=True)
class Fed(Decomposition):
    """A stranger with a feed, fitted by gradients from noise."""

    def network(self, shape, rank):
        sizes = {"m": shape[0], "q": rank, "n": int(np.prod(shape[1:]))}
        inner = Network("m q, q n -> m n", sizes)
        return Network("m n, n p -> m p", {"m": shape[0], "n": sizes["n"], "p": sizes["n"]}, Feed(inner, "tanh"))

    def fit(self, x, network, *, seed=0, metric=None):
        if metric is not None:
            return super().fit(x, network, seed=seed, metric=metric)
        return tnc.fit.gradient.descend(x, network, random_cores(x, network, seed), steps=60)


STRANGERS = {"hyperedge": CP(), "pairs": Pairs(), "fed": Fed()}
SHAPES = {"matrix": (8, 12), "kernel": (6, 4, 3, 3), "stack": (2, 5, 34), "padded": (7, 11)}
ONLY = {"hyperedge": ("matrix", "padded"), "fed": ("matrix", "padded"), "pairs": ("matrix", "kernel", "padded")}
CASES = [(name, shape) for name in [*FIRST, *STRANGERS] for shape in SHAPES if shape in ONLY.get(name, SHAPES)]


def made(name):
    return STRANGERS[name] if name in STRANGERS else tnc.decompositions.parse(name)


def moment(n, rng, samples=None):
    """A second moment whose eigenvalues fall."""
    turned = np.linalg.qr(rng.standard_normal((n, n)))[0]
    x = turned @ (rng.standard_normal((n, samples or 2 * n)) * np.arange(1, n + 1)[:, None] ** -0.8)
    return x @ x.T


def metric_for(shape, rng, rows=False):
    if len(shape) == 3:
        return Metric((Factor((2,), np.stack([moment(shape[2], rng) for _ in range(shape[0])]), (0,)),))
    if len(shape) == 4:
        return Metric((Factor((1,), moment(shape[1], rng)), Factor((2, 3), moment(9, rng))))
    inputs = Factor((1,), moment(shape[1], rng))
    return Metric((inputs, Factor((0,), moment(shape[0], rng)))) if rows else Metric((inputs,))


def dense(network, cores, shape):
    return Factorization(network, [np.asarray(core, np.float64) for core in cores], shape).dense()


def error(metric, x, network, cores):
    return metric.error(np.asarray(x, np.float64), dense(network, cores, x.shape))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_never_worse_than_the_fit_of_the_weight(name, kind, rng):
    shape, plugin = SHAPES[kind], made(name)
    x, metric = rng.standard_normal(shape), metric_for(shape, rng)
    network = plugin.network(shape, 2 * plugin.step)
    plain, known = plugin.fit(x, network), plugin.fit(x, network, metric=metric)
    assert error(metric, x, network, known) <= error(metric, x, network, plain) + 1e-6


@pytest.mark.parametrize("name", ["svd", "tucker", "sttu", "adtn"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_on_every_library(name, kind, place, rng):
    x, plugin = rng.standard_normal((6, 8)).astype(kind), made(name)
    metric, network = metric_for(x.shape, rng, rows=True), plugin.network(x.shape, 2)
    given = place.from_numpy(x)
    weighed = metric.like(given, place.xp.float64)
    plain, known = plugin.fit(given, network), plugin.fit(given, network, metric=weighed)
    assert all(core.dtype == given.dtype for core in known)
    plain, known = ([place.to_numpy(core) for core in cores] for cores in (plain, known))
    assert error(metric, x, network, known) <= error(metric, x, network, plain) + 1e-6
    elsewhere = plugin.fit(x, network, metric=metric)
    assert error(metric, x, network, known) == pytest.approx(error(metric, x, network, elsewhere), rel=0.05)


def test_a_metric_that_weighs_all_alike_changes_nothing(rng):
    x, svd = rng.standard_normal((8, 12)), made("svd")
    network = svd.network(x.shape, 3)
    plain, known = (dense(network, svd.fit(x, network, metric=m), x.shape) for m in (None, 7.0 * np.eye(12)))
    np.testing.assert_allclose(known, plain, atol=1e-10)


# ---------------------------------------------------------------- optima


def optimum(x, inputs, rank, outputs=None):
    """The smallest error in a metric over all matrices of that rank, by an eigendecomposition."""
    left, right = (_root(m) for m in (np.eye(len(x)) if outputs is None else outputs, inputs))
    values = np.sort(np.linalg.eigvalsh((left @ x @ right) @ (left @ x @ right).T))[::-1].clip(0)
    return np.sqrt(values[rank:].sum() / values.sum())


def _root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


TWO = Network("m r, r n -> m n", {"m": 8, "n": 12, "r": 3})
THREE = Network("m r, r s, s n -> m n", {"m": 8, "n": 12, "r": 3, "s": 3})
SPLIT = Network("a b r, r c d -> (a b) (c d)", {"a": 2, "b": 4, "c": 3, "d": 4, "r": 3})


@pytest.mark.parametrize("sides", [1, 2])
def test_svd_is_the_best_there_is(sides, rng):
    x = rng.standard_normal((8, 12))
    metric = metric_for(x.shape, rng, rows=sides == 2)
    best = optimum(x, metric.factors[0].matrix, 3, metric.factors[1].matrix if sides == 2 else None)
    cores = made("svd").fit(x, TWO, metric=metric)
    assert error(metric, x, TWO, cores) == pytest.approx(best, rel=1e-9)
    again = calibrated(x, TWO, metric, lambda y: tree_svd(y, TWO)[0], start=random_cores(x, TWO, 0))
    assert error(metric, x, TWO, again) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 30])
@pytest.mark.parametrize("sides", [1, 2])
def test_sweeps_from_noise_reach_the_best(sides, samples, rng):
    """Three cores have no closed form here, although they can be no better than two."""
    x, inputs = rng.standard_normal((8, 12)), moment(12, rng, samples)
    outputs = moment(8, rng) if sides == 2 else None
    metric = Metric((Factor((1,), inputs), *([Factor((0,), outputs)] if sides == 2 else [])))
    best = optimum(x, inputs, 3, outputs)
    weights = Weights.of(x, THREE, metric.normalized())
    cores = descend(x, THREE, random_cores(x, THREE, 3), 200, 1e-7, weights=weights).cores
    assert error(metric, x, THREE, cores) == pytest.approx(best, rel=1e-4, abs=1e-5)
    cores = calibrated(x, THREE, metric, lambda y: random_cores(y, THREE, 3))
    assert error(metric, x, THREE, cores) == pytest.approx(best, rel=2e-2, abs=1e-5)


def test_two_cores_by_sweeps_reach_the_closed_form(rng):
    x, metric = rng.standard_normal((8, 12)), metric_for((8, 12), rng)
    weights = Weights.of(x, SPLIT, metric)
    swept = descend(x, SPLIT, random_cores(x, SPLIT, 0), 100, 1e-7, weights=weights)
    assert swept.error == pytest.approx(optimum(x, metric.factors[0].matrix, 3), rel=1e-4)
    assert weights.error(SPLIT, swept.cores) == pytest.approx(swept.error, rel=1e-6)


@pytest.mark.parametrize("name", ["tt", "cp", "ring"])
def test_sweeps_never_grow_the_error(name, rng):
    x, plugin = rng.standard_normal((8, 12)), made(name)
    network, metric = plugin.network(x.shape, 2), metric_for((8, 12), rng).normalized()
    weights, start = Weights.of(x, network, metric), random_cores(x, network, 0)
    errors = [descend(x, network, start, n, 0.0, weights=weights).error for n in range(1, 8)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))


def test_cores_to_go_on_from_never_become_worse(rng):
    x = rng.standard_normal((8, 12))
    metric = metric_for(x.shape, rng)
    for name in ("tt", "cp", "adtn", "svd"):
        plugin = made(name)
        network = plugin.network(x.shape, 2)
        known = plugin.fit(x, network, metric=metric)
        moved = x + 0.1 * rng.standard_normal(x.shape)
        better = calibrated(moved, network, metric, lambda y, p=plugin, n=network: p.fit(y, n), start=known)
        assert error(metric, moved, network, better) <= error(metric, moved, network, known) + 1e-9


# ------------------------------------------------------------- any metric


def singular(n, rng):
    one, dead = rng.standard_normal(n), rng.standard_normal((n, 20))
    dead[: n // 2] = 0.0
    return {
        "one sample": np.outer(one, one), "dead channels": dead @ dead.T, "constant inputs": np.ones((n, n)),
        "no inputs": np.zeros((n, n)), "dead, as a diagonal": np.arange(n) // 2 * 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(singular(4, np.random.default_rng(0))))
@pytest.mark.parametrize("name", ["svd", "tt", "cp", "adtn", "adtn(depth=2)"])
def test_singular_moments(name, kind, rng):
    plugin = made(name)
    for dtype, rows in ((np.float32, None), (np.float64, np.ones((6, 6)))):
        x = rng.standard_normal((6, 8)).astype(dtype)
        factors = [Factor((1,), singular(8, rng)[kind])] + ([Factor((0,), rows)] if rows is not None else [])
        metric, network = Metric(tuple(factors)), plugin.network(x.shape, 2)
        plain, known = plugin.fit(x, network), plugin.fit(x, network, metric=metric)
        assert all(np.isfinite(core).all() for core in known)
        worst = error(metric, x, network, plain) if kind != "no inputs" else np.inf
        assert error(metric, x, network, known) <= worst + 1e-6


def test_a_weight_that_no_input_reaches_is_fitted_as_it_is(rng):
    x, metric = np.zeros((6, 8)), Metric((Factor((1,), np.diag([1.0] * 4 + [0.0] * 4)),))
    x[:, 4:] = rng.standard_normal((6, 4))
    network = made("svd").network(x.shape, 2)
    cores = made("svd").fit(x, network, metric=metric)
    np.testing.assert_allclose(dense(network, cores, x.shape), dense(network, made("svd").fit(x, network), x.shape))


@pytest.mark.parametrize("name", ["svd", "tt", "cp", "adtn", "adtn(depth=2, steps=30)"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_and_metrics_of_any_scale(name, dtype, rng):
    plugin, x, matrix = made(name), rng.standard_normal((6, 8)), moment(8, rng)
    network = plugin.network(x.shape, 2)
    metric = Metric((Factor((1,), matrix),))
    errors = []
    for scale in (1.0, 1e-20, 1e25):
        for strength in (1.0, 1e-30, 1e30):
            scaled = (scale * x).astype(dtype)
            cores = plugin.fit(scaled, network, metric=Metric((Factor((1,), strength * matrix),)))
            errors.append(metric.error(scaled / np.asarray(scale, dtype), dense(network, cores, x.shape) / scale))
    np.testing.assert_allclose(errors, errors[0], rtol=0.02)


def test_zeros(rng):
    network = made("cp").network((6, 8), 2)
    cores = made("cp").fit(np.zeros((6, 8)), network, metric=moment(8, rng))
    assert not dense(network, cores, (6, 8)).any()


@pytest.mark.parametrize("name", ["svd", "cp", "adtn(depth=2)"])
def test_metrics_of_other_weights_are_refused(name, rng):
    plugin, x = made(name), rng.standard_normal((6, 8))
    with pytest.raises(WeightError, match=r"shape \(5, 5\) .* not one for a weight of shape \(6, 8\)"):
        plugin.fit(x, plugin.network(x.shape, 1), metric=np.eye(5))
    with pytest.raises(WeightError, match="second moment"):
        calibrated(x, plugin.network(x.shape, 1), "eye", lambda x: [x])


def test_a_feed_learns_the_metric(rng):
    x, plugin = rng.standard_normal((6, 8)), made("adtn")
    metric, network = metric_for(x.shape, rng), plugin.network(x.shape, 2)
    plain, known = plugin.fit(x, network), plugin.fit(x, network, metric=metric)
    assert error(metric, x, network, known) < 0.95 * error(metric, x, network, plain)


def test_whitened_has_the_singular_values_of_the_metric(rng):
    x, metric = rng.standard_normal((8, 12)), metric_for((8, 12), rng, rows=True)
    seen = whitened(x, TWO, metric)
    values = np.linalg.svd(seen, compute_uv=False)
    missed = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
    assert missed == pytest.approx(optimum(x, metric.factors[0].matrix, 3, metric.factors[1].matrix), rel=1e-9)


# ----------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("text", "shape", "plugin"),
    [
        ("(group=3 rows) columns", (12, 6), "tt"),
        ("(group=2 columns) rows kernel", (12, 6, 3), "svd"),
        ("(stack=3 rows) columns", (12, 10), "cp"),
        ("stack columns rows", (3, 6, 10), "tucker"),
        ("(group=2 rows) columns kernel", (10, 5, 3), "stt"),  # padded: one network
        ("(group=2 columns) rows kernel", (10, 5, 3), "stt"),
        ("group rows columns", (2, 6, 8), "adtn"),  # a feed: one network for both groups
    ],
)
def test_metrics_of_weights_in_roles(text, shape, plugin, rng):
    roles = AxisRoles(text)
    made_in = InRoles(tnc.decompositions.parse(plugin), roles)
    x = rng.standard_normal(shape)
    seen = roles.permuted(x)
    columns = roles.words.index("columns")
    lead = tuple(range(columns - 1))
    size = int(np.prod(seen.shape[columns:]))
    each = np.stack([moment(size, rng) for _ in range(seen.shape[0])]) if lead else moment(size, rng)
    metric = Metric((Factor(tuple(range(columns, seen.ndim)), each, lead),))
    network = made_in.network(shape, 2 * made_in.step)
    for one in (metric, moment(size, rng)):
        plain, known = made_in.fit(x, network), made_in.fit(x, network, metric=one)
        before, after = (made_in.error(x, dense(network, cores, shape), one) for cores in (plain, known))
        if made_in.known(network, shape) == roles:
            assert after <= before + 1e-6
        better = made_in.improved(x, network, one, known)
        assert made_in.error(x, dense(network, better, shape), one) <= 1.001 * after
        assert np.isfinite(made_in.quick(x, network, one)[0]).all()
        assert made_in.whitened(x, one).shape == shape
