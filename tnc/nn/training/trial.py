"""Find a learning rate by a short trial of some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from tnc.errors import TncError

__all__ = ["RATES", "above", "best_rate", "trial_factor", "trial_steps"]

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
"""The rates that are tried by default."""

_LEAST_STEPS, _MOST_STEPS, _PART = 12, 48, 20
"""The least and the most steps of a trial. Between them, trials have this part of all steps of the run."""

_HOPELESS = 2.0
"""Larger rates are not tried any more after one whose result is worse than the best by this factor."""

_GAIN = 0.25
"""Results with this part of the best one's gain are as good: short trials favour small rates, long runs large ones."""

_LOWER, _HIGHER = (0.3, 0.1), (3.0, 10.0)
"""Factors of the smallest rate and of the largest one, for more trials as long as the last one was the best."""


def best_rate(
    rates: Iterable[float], attempt: Callable[[float], float], before: float
) -> tuple[float | None, dict[float, float]]:
    """The largest rate that gains a good part of what the best one does, and the result of every rate that was tried.

    Rates are tried from the smallest to the largest, until one is hopeless. If the smallest one is the best, or the
    largest one, up to two beyond it are tried.

    Parameters
    ----------
    rates : iterable of float
    attempt : callable
        The result of some steps with a rate, the smaller the better; infinite or NaN if they fail. It leaves the model
        as it was.
    before : float
        The result of no step.

    Returns
    -------
    rate : float or None
        None if no result is finite.
    results : dict

    Raises
    ------
    TncError
        A rate is not finite or not above 0, or there is none.
    """
    ordered = sorted(rates)
    if not ordered or not all(0 < rate < math.inf for rate in ordered):
        raise TncError(f"lr={ordered}: learning rates must be finite and above 0, and at least one is needed")
    results: dict[float, float] = {}

    def best() -> float:
        return min(results, key=lambda rate: (results[rate], rate))

    for rate in ordered:
        results[rate] = _number(attempt(rate))
        if not results[rate] <= _HOPELESS * results[best()] or results[rate] == math.inf:
            break
    edge, factors = (ordered[0], _LOWER) if best() == ordered[0] else (ordered[-1], _HIGHER)
    for rate in _times(edge, factors):
        if best() != edge:
            break
        edge = rate
        results[edge] = _number(attempt(edge))
    if not math.isfinite(results[best()]):
        return None, results
    least = results[best()]
    enough = least + (1 - _GAIN) * max(before - least, 0.0) if math.isfinite(before) else least
    return max(rate for rate in results if results[rate] <= enough), results


def trial_steps(total: float) -> int:
    """The number of steps of a trial for a run of `total` steps. The shorter it is, the more it favours small rates."""
    wanted = total / _PART  # infinite if the length of the run is unknown
    return int(min(total, _MOST_STEPS, max(_LEAST_STEPS, wanted)))


def trial_factor(step: int, steps: int) -> float:
    """The factor of the rate in a step of a trial: it rises in the first steps, and falls in the last half."""
    rising = (step + 1) / (0.25 * steps)
    falling = (steps - step) / (0.5 * steps)
    return min(1.0, rising, falling)


def above(rate: float) -> list[float]:
    """Rates above one, to try where larger ones may be better."""
    return _times(rate, _HIGHER)


def _times(rate: float, factors: Iterable[float]) -> list[float]:
    """Multiples of a rate as numbers to show and to give again: 0.009, not 0.009000000000000001."""
    return [float(f"{rate * factor:.6g}") for factor in factors]


def _number(result: float) -> float:
    return result if math.isfinite(result) else math.inf
