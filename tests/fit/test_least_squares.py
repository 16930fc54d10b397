"""Alternating least squares: one core against NumPy's own least squares, both solvers, the promises of a descent."""

from __future__ import annotations

import itertools
from math import inf, sqrt

import numpy as np
import pytest

from tnc import Network
from tnc.contract import dense, terms
from tnc.fit import core_problem, random_cores
from tnc.fit.least_squares import descend
from tnc.fit.linalg import norm, relative_error

SIZES = {"a": 5, "b": 4, "c": 6, "d": 3}
RING = Network("p a q, q b r, r c s, s d p -> a b c d", {**SIZES, "p": 2, "q": 2, "r": 3, "s": 2})
CP = Network("a r, b r, c r, d r -> a b c d", {**SIZES, "r": 4})
BATCH = Network("a b p, b c q, p q d -> a b c d", {**SIZES, "p": 3, "q": 2})
"""The index b passes through two cores: every b is a problem of its own."""

solvers = pytest.mark.parametrize("formed", [core_problem.FORMED, 0], ids=["solve", "conjugate"])
networks = pytest.mark.parametrize("network", [RING, CP, BATCH], ids=["ring", "cp", "batch"])


@pytest.fixture
def limit(monkeypatch):
    """Set the side up to which normal matrices are formed; what was planned for another is forgotten."""

    def setter(formed):
        monkeypatch.setattr(core_problem, "FORMED", formed)
        core_problem.problem_of.cache_clear()

    yield setter
    monkeypatch.undo()
    core_problem.problem_of.cache_clear()


@pytest.fixture
def weight(rng):
    return rng.standard_normal(tuple(SIZES.values()))


@networks
@solvers
def test_the_last_core_of_a_sweep_is_optimal(network, formed, weight, limit, monkeypatch):
    limit(formed)
    monkeypatch.setattr(core_problem, "STEPS", 60)
    found = descend(weight, network, random_cores(weight, network, 0), 1, 0.0)
    *others, last = found.cores
    columns = []
    for k in range(last.size):  # the weight is linear in the last core: one column per entry
        unit = np.zeros(last.size)
        unit[k] = 1.0
        columns.append(dense(network, [*others, unit.reshape(last.shape)]).reshape(-1))
    best = np.linalg.lstsq(np.stack(columns, axis=1), weight.reshape(-1))[0]
    optimum = relative_error(weight, dense(network, [*others, best.reshape(last.shape)]))
    assert found.error == pytest.approx(optimum, abs=1e-8)


@pytest.mark.pairwise("solver and network do not see the library")
@networks
@solvers
def test_the_error_never_rises_and_is_the_true_one(network, formed, weight, place, limit):
    limit(formed)
    x, errors = place.from_numpy(weight), []
    start = random_cores(x, network, 1)
    for sweeps in (1, 2, 3, 5, 8, 13):
        found = descend(x, network, start, sweeps, 0.0)
        errors.append(found.error)
        assert relative_error(x, dense(network, found.cores)) == pytest.approx(found.error, rel=1e-6)
    assert all(after <= before for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < errors[0]


@networks
def test_both_solvers_end_alike(network, weight, limit):
    start = random_cores(weight, network, 2)
    solved = descend(weight, network, start, 300, 1e-7)
    limit(0)
    assert descend(weight, network, start, 300, 1e-7).error <= 1.02 * solved.error


@pytest.mark.pairwise("the ridge is added to whatever problem the solver has")
@networks
@solvers
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1e-1])
def test_error_and_ridge_never_rise_together(network, formed, weight, place, limit, ridge):
    limit(formed)
    x, aims, errors = place.from_numpy(weight), [], []
    start = random_cores(x, network, 1)
    for sweeps in (1, 2, 3, 5, 8, 13):
        found = descend(x, network, start, sweeps, 0.0, ridge=ridge)
        gap, whole = relative_error(x, dense(network, found.cores)), terms(network, found.cores) / norm(x)
        assert found.error == pytest.approx(gap, rel=1e-6)
        assert found.aim == pytest.approx(sqrt(gap**2 + ridge * whole**2), rel=1e-6)
        aims.append(found.aim)
        errors.append(gap)
    assert all(after <= before for before, after in itertools.pairwise(aims)), aims
    assert aims[-1] < aims[0] and (ridge or aims == pytest.approx(errors))


@networks
def test_a_ridge_bounds_the_terms(network, weight):
    start = random_cores(weight, network, 1)
    ends = [descend(weight, network, start, 300, 1e-9, ridge=ridge) for ridge in (0.0, 1e-3, 1e-1)]
    sizes = [terms(network, found.cores) for found in ends]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.9 * sizes[0]
    assert ends[0].error <= ends[1].error * (1 + 1e-3) and ends[1].error < ends[2].error


def test_large_normal_matrices_are_not_formed(rng):
    # A core of 2 x 16^3 entries: its normal matrix would take half a gigabyte.
    sizes = {"a": 18, "b": 18, "c": 18, "t": 2, "r": 16, "s": 16, "u": 16}
    network = Network("t a r, t b s, t c u, t r s u -> a b c", sizes)
    x = rng.standard_normal((18, 18, 18))
    found = descend(x, network, random_cores(x, network, 0), 3, 0.0)
    assert relative_error(x, dense(network, found.cores)) == pytest.approx(found.error, rel=1e-6)
    assert found.error < 0.5


def test_work_is_counted_and_bounded(weight):
    start = random_cores(weight, RING, 0)
    once, more = (descend(weight, RING, start, sweeps, 0.0).work for sweeps in (1, 5))
    assert more == pytest.approx(5 * once)
    assert descend(weight, RING, start, 100, 0.0, work=2.5 * once).work == pytest.approx(3 * once)
    assert descend(weight, RING, start, 100, inf).work == pytest.approx(once)


def test_the_start_is_left_alone(weight):
    start = random_cores(weight, CP, 0)
    kept = [core.copy() for core in start]
    descend(weight, CP, start, 5, 0.0)
    assert all(np.array_equal(a, b) for a, b in zip(start, kept, strict=True))
