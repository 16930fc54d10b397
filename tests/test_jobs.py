"""Rows of jobs: with fits and without, what they count, and what they predict."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.ranked import weight_of
from tnc.fit.metric import Factor, Metric
from tnc.jobs import Weighing, choose, fit, foresee
from tnc.rules import Rule
from tnc.weights import job_of

POLICIES = (4, 0.5, "tolerance:0.5", "budget:0.5")


def job(method="svd", rank=4, x=None, **kwargs):
    x = weight_of((24, 30), power=1.0) if x is None else x
    return job_of(Rule("*", method, rank), x, **kwargs)


def chosen(one):
    return choose({"w": one}, {})["w"]


@pytest.mark.parametrize("rank", POLICIES)
@pytest.mark.parametrize("method", ["svd", "cp", "tt", "auto(among=('svd', 'tt'))"])
def test_what_is_foreseen_is_what_is_fitted(method, rank):
    one = job(method, rank)
    point = chosen(one)
    row, fitted = foresee("w", one, point), fit("w", one, point)[1]
    for name in ("method", "ranks", "before", "after", "nominal", "note", "itemsize", "candidates"):
        assert getattr(row, name) == getattr(fitted, name), name
    assert row.error is None or row.method == "dense"
    if row.method != "dense":
        assert row.predicted == pytest.approx(fitted.error**2, rel=0.5, abs=1e-3)


def test_a_weight_that_stays_dense_has_a_reason():
    row = foresee("w", one := job(rank=100), chosen(one))
    assert row.method == "dense" and row.before == row.after == 720 and "would keep" in row.note
    row = foresee("w", one := job(rank=0.001), chosen(one))
    assert row.method == "dense" and "rank 1 of svd already keeps" in row.note and row.predicted is None


def weighing(uses=1.0, importance=1.0):
    random = np.random.default_rng(0).standard_normal((30, 30))
    return Weighing(Metric((Factor((1,), random @ random.T),)), importance, uses)


def test_operations_are_counted_where_uses_are_known():
    assert job().row("w").operations_before is None
    one = job(weighing=weighing(uses=5.0))
    assert one.row("w").operations_before == one.row("w").operations_after == 5 * 720
    row = foresee("w", one, chosen(one))
    assert (row.operations_before, row.operations_after) == (5 * 720, 5 * 4 * 54)
    none = job(weighing=weighing(uses=0.0)).row("w")
    assert none.operations_before == none.operations_after == 0  # a lookup multiplies nothing


def test_the_rise_is_the_error_times_what_it_is_worth():
    plain, dear = (foresee("w", one := job(weighing=weighing(importance=k)), chosen(one)) for k in (1.0, 50.0))
    assert dear.predicted == pytest.approx(50 * plain.predicted) and plain.predicted > 0
    assert job().rise(float("nan")) is None and job().rise(float("inf")) is None


@pytest.mark.parametrize(
    ("dtype", "narrow", "size"), [("float64", False, 8), ("float32", False, 4), ("float32", True, 2)]
)
def test_bytes_of_a_number(dtype, narrow, size):
    from dataclasses import replace

    one = replace(job(x=weight_of((6, 8), power=1.0).astype(dtype), rank=1), narrow=narrow)
    assert one.row("w").itemsize == one.subject.itemsize == size


def test_a_fit_says_the_same(rng):
    checkpoint = tnc.compress_weights({"w": rng.standard_normal((8, 9)).astype("float32")}, "svd", rank=2)
    assert checkpoint.report.bytes == (288, 136) and checkpoint.report.operations is None
