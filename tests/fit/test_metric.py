"""Metrics as sums over explicit dense matrices: products, norms, parts, and operands of a contraction."""

from __future__ import annotations

import numpy as np
import pytest

from tnc import Factorization, Network
from tnc.errors import WeightError
from tnc.fit import Factor, Metric, random_cores
from tnc.fit.metric import marginals, metric_of, roots
from tnc.fit.metric_sweep import MetricSweep, Weights

SHAPE = (2, 3, 4, 5)


def moment(n, rng, *lead):
    a = rng.standard_normal((*lead, n, n + 2))
    return a @ np.swapaxes(a, -1, -2)


def metrics(rng):
    """Metrics of a weight of `SHAPE`, and for each one its matrix over all entries."""
    one = [np.eye(n) for n in SHAPE]

    def kron(*parts):
        whole = np.ones((1, 1))
        for part in parts:
            whole = np.kron(whole, part)
        return whole

    a, b, c = moment(3, rng), moment(20, rng), moment(4, rng, 2)
    d, e, k = rng.random(4), rng.random((2, 5)), moment(5, rng)
    blocks = np.zeros((120, 120))
    for i in range(2):
        blocks[60 * i :][:60, 60 * i : 60 * i + 60] = kron(one[1], c[i], one[3])
    slowly = np.einsum("ab,cd->acbd", moment(2, rng), moment(5, rng)).reshape(10, 10)  # over axes 0 and 3
    apart = np.einsum("aebf,ij,kl->aikebjlf", slowly.reshape(2, 5, 2, 5), one[1], one[2]).reshape(120, 120)
    return {
        "full": (Metric((Factor((1,), a),)), kron(one[0], a, one[2], one[3])),
        "merged axes": (Metric((Factor((2, 3), b),)), kron(one[0], one[1], b)),
        "axes apart": (Metric((Factor((0, 3), slowly),)), apart),
        "diagonal": (Metric((Factor((2,), d),)), kron(one[0], one[1], np.diag(d), one[3])),
        "along": (Metric((Factor((2,), c, (0,)),)), blocks),
        "diagonal along": (
            Metric((Factor((3,), e, (0,)),)),
            np.diag(np.broadcast_to(e[:, None, None], SHAPE).ravel()),
        ),
        "channel and kernel": (Metric((Factor((2,), c[0]), Factor((3,), k))), kron(one[0], one[1], c[0], k)),
        "both sides": (Metric((Factor((2, 3), b), Factor((1,), a))), kron(one[0], a, b)),
        "nothing": (Metric(()), np.eye(120)),
    }


KINDS = list(metrics(np.random.default_rng(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_norms_are_those_of_the_whole_matrix(kind, place, rng):
    metric, matrix = metrics(rng)[kind]
    x, y = rng.standard_normal(SHAPE), rng.standard_normal(SHAPE)
    metric, x0, y0 = metric.like(place.from_numpy(x)), place.from_numpy(x), place.from_numpy(y)
    np.testing.assert_allclose(place.to_numpy(metric.apply(x0)).ravel(), matrix @ x.ravel(), rtol=1e-10, atol=1e-10)
    assert metric.energy(x0) == pytest.approx(x.ravel() @ matrix @ x.ravel())
    gap = (x - y).ravel()
    assert metric.error(x0, y0) == pytest.approx(np.sqrt(gap @ matrix @ gap / (x.ravel() @ matrix @ x.ravel())))


def test_error_of_nothing():
    metric, zero, one = Metric((Factor((0,), np.diag([1.0, 0.0])),)), np.zeros((2, 2)), np.diag([0.0, 1.0])
    assert metric.error(zero, zero) == metric.error(one, zero) == 0.0  # no input reaches the second row
    assert metric.error(zero, np.eye(2)) == float("inf")


@pytest.mark.parametrize("kind", ["full", "along", "diagonal along", "channel and kernel", "both sides"])
def test_a_member_is_the_metric_of_one_index(kind, rng):
    metric, _ = metrics(rng)[kind]
    x = rng.standard_normal(SHAPE)
    for k in range(2):
        np.testing.assert_allclose(metric.member(k).apply(x[k]), metric.apply(x)[k], rtol=1e-12, atol=1e-12)


def test_a_member_knows_nothing_about_the_axis_that_is_gone(rng):
    metric = Metric((Factor((0,), moment(2, rng)), Factor((3,), moment(5, rng, 2, 3), (0, 1))))
    (factor,) = metric.member(1).factors
    assert factor.axes == (2,) and factor.along == (0,) and factor.matrix is not None
    np.testing.assert_array_equal(factor.matrix, metric.factors[1].matrix[1])


def test_axes_that_become_one_are_not_weighed(rng):
    # Axes 0 and 2 of (group, rows, columns, kernel) become one: (rows, columns of all groups, kernel).
    a, b, c = moment(3, rng), moment(4, rng, 2), moment(5, rng, 2)
    metric = Metric((Factor((1,), a), Factor((2,), b, (0,)), Factor((3,), c, (0,))))
    first, last = metric.moved({1: 0, 3: 2}).factors
    assert (first.axes, last.axes, last.along) == ((0,), (2,), ())
    np.testing.assert_array_equal(first.matrix, a)
    np.testing.assert_allclose(last.matrix, c.mean(axis=0))


def test_normalized(rng):
    a, d = moment(3, rng), rng.random(4)
    metric = Metric((Factor((0,), a), Factor((1,), d), Factor((2,), np.zeros((2, 2)))))
    first, second, third = (factor.matrix for factor in metric.normalized().factors)
    np.testing.assert_allclose(first, a / np.diag(a).mean())
    np.testing.assert_allclose(second, d / d.mean())
    np.testing.assert_array_equal(third, np.eye(2))
    once = metric.normalized()
    assert once.normalized() is once  # it keeps its roots
    assert once.roots(0)[0] is once.roots(0)[0]


def test_like_moves_and_casts(place, rng):
    metric = Metric((Factor((0,), moment(3, rng)),))
    x = place.xp.astype(place.from_numpy(np.ones((3, 3))), place.xp.float32)
    assert metric.like(x).factors[0].matrix.dtype == place.xp.float32
    assert metric.like(x, place.xp.float64).factors[0].matrix.dtype == place.xp.float64


NETWORKS = {
    "one index an axis": (Network("m r, r n k -> m n k", {"m": 4, "n": 5, "k": 3, "r": 2}), (4, 5, 3)),
    "split axes": (Network("a c r, b d r -> (a b) (c d)", {"a": 2, "b": 2, "c": 2, "d": 3, "r": 3}), (4, 6)),
    "overshooting": (Network("a c r, b d r -> (a b) (c d)", {"a": 2, "b": 3, "c": 2, "d": 3, "r": 3}), (6, 5)),
    "an index of two cores": (
        Network("m n r, r n s, s k -> m n k", {"m": 3, "n": 4, "k": 5, "r": 2, "s": 2}),
        (3, 4, 5),
    ),
}


@pytest.mark.parametrize("sides", ["columns", "diagonal", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sweep_solves_least_squares_in_the_metric(name, sides, rng):
    """Of the last core: with the others as they are, its best values by the definition."""
    network, shape = NETWORKS[name]
    x, metric = rng.standard_normal(shape), _metric(shape, sides, rng)
    cores = random_cores(x, network, 1)
    weights = Weights.of(x, network, metric)
    sweep = MetricSweep(network, cores, 0.0, weights)
    before = weights.error(network, cores)
    sweep.run()
    error = weights.error(network, sweep.cores)
    assert error < before
    assert (1 - sweep.energy / weights.energy) == pytest.approx(error**2, abs=1e-9)
    assert error == pytest.approx(_best(network, sweep.cores, x, metric), rel=1e-6)


def _metric(shape, sides, rng):
    columns = tuple(range(1, len(shape)))
    n = int(np.prod(shape[1:]))
    inputs = Factor(columns, rng.random(n) if sides == "diagonal" else moment(n, rng))
    return Metric((inputs, Factor((0,), moment(shape[0], rng))) if sides == "both" else (inputs,))


def _best(network, cores, x, metric):
    """The smallest error in a metric, with all cores but the last one fixed."""
    last, units = cores[-1], []
    for k in range(last.size):
        unit = np.zeros(last.size)
        unit[k] = 1.0
        units.append(Factorization(network, [*cores[:-1], unit.reshape(last.shape)], x.shape).dense().ravel())
    images = np.array([metric.apply(unit.reshape(x.shape)).ravel() for unit in units])
    gram = images @ np.array(units).T
    right = images @ x.ravel()
    gained = right @ np.linalg.lstsq(gram, right, rcond=1e-12)[0]
    return np.sqrt(max(1 - gained / metric.energy(x), 0.0))


def test_roots_of_singular_matrices(place, rng):
    values = np.array([3.0, 1.0, 0.0, 0.0])
    vectors = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    matrix = (vectors * values) @ vectors.T
    root, inverse = map(place.to_numpy, roots(place.from_numpy(matrix)))
    np.testing.assert_allclose(root @ root, matrix, atol=1e-12)
    np.testing.assert_allclose(inverse, np.linalg.pinv(root, rcond=1e-5), atol=1e-7)
    root, inverse = map(place.to_numpy, roots(place.from_numpy(values)))
    np.testing.assert_allclose(root**2, values)
    np.testing.assert_allclose(inverse[2:], 0.0)


@pytest.mark.parametrize("smallest", [1e-3, 1e-14, 0.0])
def test_roots_of_large_matrices(place, rng, smallest):
    """With a triangular root where the matrix is regular, and the same meaning where it is not."""
    values = np.concatenate([[smallest], np.linspace(0.1, 1.0, 79)])
    vectors = np.linalg.qr(rng.standard_normal((80, 80)))[0]
    matrix = (vectors * values) @ vectors.T
    root, inverse = map(place.to_numpy, roots(place.from_numpy(matrix)))
    assert (np.abs(np.triu(root, 1)).max() < 1e-12) == (smallest == 1e-3)
    np.testing.assert_allclose(root @ root.T, matrix, atol=1e-12)
    np.testing.assert_allclose(root @ inverse @ root, root, atol=1e-9)
    x = rng.standard_normal((5, 80))
    np.testing.assert_allclose(((x @ root) ** 2).sum(), np.trace(x @ matrix @ x.T), rtol=1e-12)


def test_marginals_of_a_product_are_its_parts(rng):
    a, b, c = moment(2, rng), moment(3, rng), moment(2, rng)
    parts = marginals(np.kron(np.kron(a, b), c), (2, 3, 2))
    np.testing.assert_allclose(np.kron(np.kron(*parts[:2]), parts[2]), np.kron(np.kron(a, b), c))
    assert np.trace(np.kron(np.kron(*parts[:2]), parts[2])) == pytest.approx(np.trace(a) * np.trace(b) * np.trace(c))


REFUSED = {
    "not one": (lambda: metric_of("inputs", (4, 6)), "give the second moment of the inputs"),
    "other columns": (lambda: metric_of(np.eye(5), (4, 6)), r"shape \(5, 5\) .*not one for a weight of shape \(4, 6\)"),
    "not square": (lambda: metric_of(np.ones((6, 5)), (4, 6)), "not square"),
    "no such axis": (lambda: metric_of(Metric((Factor((2,), np.eye(6)),)), (4, 6)), "not one for a weight"),
    "one axis twice": (lambda: Metric((Factor((0,), np.eye(4)), Factor((0, 1), np.eye(24)))), "one factor only"),
    "another stack": (lambda: metric_of(Metric((Factor((1,), np.ones((3, 6)), (0,)),)), (4, 6)), "not one for"),
    "without the kernel": (lambda: metric_of(np.eye(6), (4, 6, 3, 3)), "not one for a weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    make, words = REFUSED[case]
    with pytest.raises(WeightError, match=words):
        make()
