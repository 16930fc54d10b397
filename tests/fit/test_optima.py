"""No fit ends behind TensorLy's at the same ranks: a part of the grid of `benchmarks/optima.py`."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from benchmarks.optima import BEHIND, TARGETS, cell
from tnc.fit import alternating

CELLS = [
    ("noisy rank-8 kernel", "cp", 4),
    ("noisy rank-8 kernel", "cp", 9),
    ("noisy rank-8 kernel", "tt", 3),
    ("kernel of few channels", "ring", 3),
    ("decaying matrix", "cp", 9),
    ("matrix of noise", "tucker", 3),
    ("matrix of noise", "tucker", 5),
    ("four axes of noise", "tucker", 3),
    ("four axes of rank 8", "cp", 9),
    ("four smooth axes", "cp", 4),
]


@pytest.mark.usefixtures("all_starts")
@pytest.mark.parametrize(("target", "name", "rank"), CELLS)
def test_fits_are_not_behind(target, name, rank):
    found = cell(next(one for one in TARGETS if one.name == target), name, rank)
    assert found is not None and found.behind <= BEHIND, found


def starts_of(monkeypatch):
    """How many random starts a fit of a small weight has."""
    counted, made = [], alternating.random_cores
    monkeypatch.setattr(alternating, "random_cores", lambda *given: counted.append(1) or made(*given))
    cp = tnc.decompositions["cp"]()
    cp.fit(np.random.default_rng(0).standard_normal((4, 3, 2)), cp.network((4, 3, 2), 2))
    return len(counted)


def test_tests_fit_from_few_starts(monkeypatch):
    """The limits that `tests/conftest.py` lowers are those that fits use: else the tests take twice as long."""
    assert starts_of(monkeypatch) == 6


@pytest.mark.usefixtures("all_starts")
def test_users_get_many_starts(monkeypatch):
    assert starts_of(monkeypatch) > 30
