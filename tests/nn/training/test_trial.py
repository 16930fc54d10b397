"""A learning rate is found among some, and beyond them where the best is at the edge."""

from __future__ import annotations

import math

import pytest

from tnc.errors import TncError

pytest.importorskip("torch")

from tnc.nn.training.trial import best_rate, trial_factor, trial_steps

RATES = (1e-3, 1e-4, 3e-4, 3e-5)


def bowl(best):
    return lambda rate: 1 + math.log10(rate / best) ** 2


@pytest.mark.parametrize(
    ("best", "found", "tried"),
    [
        (1e-4, 1e-4, {3e-5, 1e-4, 3e-4, 1e-3}),
        (1e-3, 1e-3, {3e-5, 1e-4, 3e-4, 1e-3, 3e-3}),
        (3e-3, 3e-3, {3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2}),
        (1e-9, 3e-6, {3e-6, 9e-6, 3e-5, 1e-4, 3e-4, 1e-3}),
    ],
)
def test_the_best_rate_is_found(best, found, tried):
    rate, results = best_rate(RATES, bowl(best), math.inf)
    assert rate == pytest.approx(found) and sorted(results) == pytest.approx(sorted(tried))
    assert results[rate] == min(results.values())


@pytest.mark.parametrize(("before", "found"), [(1.1, 3e-4), (1.04, 1e-4), (0.9, 1e-4), (math.inf, 1e-4)])
def test_the_largest_rate_with_a_quarter_of_the_best_gain_is_taken(before, found):
    """A short trial favours small rates, because it has no time to make up for its first steps."""
    rate, _ = best_rate(RATES, {3e-5: 0.98, 1e-4: 0.97, 3e-4: 1.05, 1e-3: 1.1}.__getitem__, before)
    assert rate == found


def test_rates_above_a_hopeless_one_are_not_tried():
    rate, results = best_rate(RATES, {3e-5: 1.0, 1e-4: 0.5, 3e-4: 1.1}.__getitem__, math.inf)
    assert rate == 1e-4 and set(results) == {3e-5, 1e-4, 3e-4}
    rate, results = best_rate(RATES, {3e-5: 1.0, 1e-4: 0.5, 3e-4: math.nan}.__getitem__, math.inf)
    assert rate == 1e-4 and results[3e-4] == math.inf


def test_no_rate_is_found_where_all_fail():
    rate, results = best_rate(RATES, lambda rate: math.nan, 1.0)
    assert rate is None and len(results) == 3 and set(results.values()) == {math.inf}


@pytest.mark.parametrize("rates", [(), (0.0,), (1e-3, math.inf), (math.nan,)])
def test_rates_must_be_numbers_above_0(rates):
    with pytest.raises(TncError, match=r"^lr=\["):
        best_rate(rates, bowl(1.0), 1.0)


@pytest.mark.parametrize("steps", [12, 48])
def test_the_rate_rises_and_falls_in_a_trial(steps):
    factors = [trial_factor(step, steps) for step in range(steps)]
    assert 0 < factors[0] < factors[1] < 1 == max(factors) and 0 < factors[-1] < factors[-2] < 0.5


def test_long_runs_have_longer_trials():
    """None is longer than its run."""
    assert [trial_steps(total) for total in (3, 100, 400, 10_000, math.inf)] == [3, 12, 20, 48, 48]
