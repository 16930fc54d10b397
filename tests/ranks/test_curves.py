"""Curves of weights: sizes, errors that fall, and how near the predicted errors are to those of fits."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.ranked import CP, Doubling, Fed, weight_of
from tnc import Factorization
from tnc.decomposition import InRoles
from tnc.fit import Factor, Metric
from tnc.ranks.budget import points_of
from tnc.ranks.curves import Subject, curve, predicted
from tnc.roles import guessed

NAMES = [name for name in tnc.decompositions if name != "auto"]
STRANGERS = {"hyperedge": CP(), "doubling": Doubling(), "feed": Fed()}


def subject_of(plugin, shape, metric=None, rivals=1):
    x = weight_of((shape[0], int(np.prod(shape[1:]))), power=0.7).reshape(shape)
    return Subject(x, (InRoles(plugin, guessed(shape)),) * rivals, metric)


def inputs(n):
    values = np.arange(1.0, n + 1) ** -1.5
    turned = np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0]
    return Metric((Factor((1,), (turned * values) @ turned.T),))


@pytest.mark.parametrize("name", [*NAMES, *STRANGERS])
def test_sizes_rise_and_errors_fall(name):
    plugin = STRANGERS.get(name) or tnc.decompositions[name]()
    subject = subject_of(plugin, (24, 32))
    points = curve(subject, subject.candidates[0])
    sizes, errors = [p.network.n_params for p in points], [p.error for p in points]
    assert sizes == sorted(set(sizes)) and sizes[-1] < subject.size
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] >= 0
    assert len(points) > 5 or name in ("adtn", "doubling", "feed")  # few ranks


@pytest.mark.parametrize("metric", [None, inputs(32)], ids=["weight", "outputs"])
@pytest.mark.parametrize("name", ["svd", "tt", "tucker", "cp", "sttu", "btt"])
def test_predictions_are_near(name, metric):
    """Within a factor of 1.7 of the squared error of a fit to the end, near a quarter and half of the size."""
    plugin = tnc.decompositions[name]()
    subject = subject_of(plugin, (24, 32), metric, rivals=2)
    points = curve(subject, subject.candidates[0])
    points = [p for k, p in enumerate(points) if k == 0 or p.error < points[k - 1].error]  # what a budget may take
    for share in (0.25, 0.5):
        point = min(points, key=lambda p: abs(p.network.n_params - share * subject.size))
        cores = point.decomposition.fit(subject.x, point.network, metric=metric)
        made = Factorization(point.network, cores, (24, 32))
        error = made.error(subject.x) if metric is None else metric.error(subject.x, made.dense())
        assert error**2 / 1.6 <= point.error <= 1.7 * error**2


@pytest.mark.parametrize("metric", [None, inputs(32)], ids=["weight", "outputs"])
def test_singular_values_are_exact_for_two_cores(metric):
    subject = subject_of(tnc.decompositions["svd"](), (24, 32), metric)
    points = curve(subject, subject.candidates[0])
    assert [p.network.ranks[0] for p in points] == list(range(1, 14))
    for point in points[::4]:
        assert point.error == pytest.approx(predicted(subject, *point[:2]), rel=1e-6)


def test_a_weight_that_is_too_small_has_no_curve():
    subject = subject_of(tnc.decompositions["svd"](), (2, 2))
    assert curve(subject, subject.candidates[0]) == []


def test_a_network_that_is_not_possible_is_refused_or_left_out():
    class Never(CP):
        def network(self, shape, rank):
            raise tnc.errors.WeightError(f"no network for {shape}")

    subject, svd = subject_of(Never(), (8, 8)), tnc.decompositions["svd"]()
    with pytest.raises(tnc.errors.WeightError, match="no network for"):
        points_of(subject)
    both = Subject(subject.x, (subject.candidates[0], InRoles(svd, guessed((8, 8)))))
    assert {str(point.decomposition) for point in points_of(both)} == {"svd"}


def test_zeros_have_no_error():
    x = np.zeros((16, 16))
    for name in ("svd", "cp", "tt"):
        candidate = InRoles(tnc.decompositions[name](), guessed((16, 16)))
        for subject in (Subject(x, (candidate,)), Subject(x, (candidate,) * 2, inputs(16))):
            assert all(point.error < 1e-10 for point in curve(subject, candidate))
