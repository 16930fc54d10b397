"""Alternating least squares for any network without a feed: starts, the choice among them, and the ridge.

Networks whose bonds form a tree have closed-form fits (`tnc.fit.trees`). This module fits those with cycles or
hyperedges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import frexp, ldexp, sqrt
from typing import NamedTuple

from array_api_compat import array_namespace

from tnc.contract.executor import contract
from tnc.fit.least_squares import Descent, descend
from tnc.fit.linalg import balance, divided, norm, rounded, wide
from tnc.fit.starts import random_cores, singular_cores
from tnc.fit.unfolding import tensorize
from tnc.network import Network
from tnc.typing import Array

__all__ = ["als"]

_WORK = 4e11
"""Largest number of multiplications and additions of one fit."""

_STARTS, _FINALISTS, _CHEAP = 96, 4, 1e8
"""With cheap sweeps: largest number of random starts, number of starts that are swept to the end, and the work that
all first sweeps together may take."""

_FIRST_SWEEPS = 5
"""Sweeps of each start in the first round."""

_BFLOAT16 = 8
"""Digits of bfloat16, the shortest format that cores are stored in."""

_ROUNDING = 0.54 * 4.0**-7 / 12
"""Variance of the relative error of a number in bfloat16: that of a uniform error, averaged over a logarithmically
distributed mantissa."""

_FINE = 0.03
"""Cores of a smaller error are refined in float64: in single precision, squared errors are off by about 1e-7."""

_IDLE = 3e-4
"""A ridge that adds less than this share of the squared error is not removed."""

_DEARER = 1.05
"""Cores may have an error in bfloat16 that is this many times the smallest one, if they are better unrounded."""

_SOLVED = 1e-8
"""Cores of a smaller error are as good as exact: no other start is tried."""


def als(
    x: Array,
    network: Network,
    *,
    cores: Sequence[Array] | None = None,
    guesses: Iterable[Sequence[Array]] = (),
    seed: int = 0,
    starts: int = 3,
    most: int | None = None,
    sweeps: int = 200,
    tolerance: float = 3e-5,
) -> list[Array]:
    """Alternating least squares: each core in turn solves its own linear problem.

    Cores and normal matrices are in float64. Only products with the whole weight are in the weight's dtype.

    Unless `cores` gives the start, several starts compete. All run five sweeps. Then the better half runs as many
    sweeps again, and so on. If sweeps are cheap, there are up to `most` starts, and four are swept to the end.
    Otherwise one is. The limits are numbers of operations, not seconds, so that a seed gives the same cores on every
    machine.

    The best cores of cycles and hyperedges may consist of terms that grow without bound and cancel one another. Such
    cores are useless in a format of few digits. Therefore the fit minimizes the squared error that is expected after
    rounding to bfloat16, which adds a multiple of the squared norm of the terms (a ridge). In the end the ridge is
    removed in steps, as long as the error in bfloat16 grows by less than a twentieth.

    Parameters
    ----------
    x : array
        The weight, of a shape that `network` holds.
    network : Network
        Without a feed.
    cores : sequence of array, optional
        The only start, of `network.core_shapes`.
    guesses : iterable of sequence of array
        Starts to try before the random ones.
    seed : int
        Seed of the random starts.
    starts : int
        Number of random starts. There are more if sweeps are cheap.
    most : int, optional
        Largest number of random starts; 96 by default.
    sweeps : int
        Largest number of sweeps over all cores.
    tolerance : float
        Stop when a sweep lowers the relative error by less than this fraction.

    Returns
    -------
    list of array
        Cores of `network.core_shapes`, in the dtype of `x`, of equal norms.

    Raises
    ------
    RankError
        The network cannot hold a weight of this shape.

    References
    ----------
    De Silva and Lim (2008) for best approximations that do not exist.
    """
    xp = array_namespace(x)
    if not norm(x):  # all cores but one are random: from cores of zeros, training could never move away
        zero = random_cores(x, network, seed)
        return [*zero[:-1], xp.zeros_like(zero[-1])]
    size = ldexp(1.0, frexp(norm(x))[1])  # starts, ridge and limits are made for norms near 1; a power of two is exact
    ridge = _ROUNDING * len(network.core_shapes)
    task = _Task(divided(tensorize(x, network), size), network, sweeps, tolerance, ridge)
    ends: list[_End] = []
    if cores is None:
        scaled = (balance(guess, 1 / size) for guess in guesses)
        finalists, spent = _finalists(task, scaled, seed, starts, _STARTS if most is None else most)
    else:
        finalists, spent = [balance(cores, 1 / size)], 0.0
        ends.append(_end(task, finalists[0]))
    for start in finalists:
        more, work = _finish(task, start, _WORK - spent)
        ends += more
        spent += work
        limit = _half_limit(task, ends)
        if any(end.exact < _SOLVED and end.half <= limit for end in ends):
            break
    best = _best(task, ends)
    return [xp.astype(core, x.dtype) for core in balance(best.cores, size)]


class _Task(NamedTuple):
    """A tensor of norm about 1, the network to fit to it, and the settings of the descents."""

    x: Array  # one axis per outer index
    network: Network
    sweeps: int
    tolerance: float
    ridge: float


class _End(NamedTuple):
    """Cores at the end of a descent, and their relative errors in the tensor's dtype and rounded to bfloat16."""

    cores: Sequence[Array]
    exact: float
    half: float


# ---------------------------------------------------------------- starts


class _Race:
    """Starts that are swept in rounds, and the work spent on them."""

    def __init__(self, task: _Task) -> None:
        self.task, self.spent = task, 0.0
        self.trials: list[Descent] = []

    @property
    def exhausted(self) -> bool:
        """Whether the share of the work that is meant for the choice of a start is spent."""
        return self.spent > _WORK / 4

    def run(self, cores: Sequence[Array], sweeps: int) -> None:
        """Sweep these cores, and add the result to the trials."""
        task = self.task
        trial = descend(task.x, task.network, cores, sweeps, task.tolerance, _WORK / 12, task.ridge)
        self.spent += trial.work
        self.trials.append(trial)

    def halve(self, sweeps: int) -> None:
        """Sweep the better half of the trials further, and drop the others."""
        better = self.trials[: (len(self.trials) + 1) // 2]
        self.trials = []
        for trial in better:
            self.run(trial.cores, sweeps)


def _finalists(
    task: _Task, guesses: Iterable[Sequence[Array]], seed: int, starts: int, most: int
) -> tuple[list[Sequence[Array]], float]:
    """The best starts after several rounds, each of which drops half of them; and the work spent."""
    race, swept = _Race(task), min(_FIRST_SWEEPS, task.sweeps)
    cheap = _first_round(race, guesses, seed, starts, most, swept)
    count = _FINALISTS if cheap else 1
    while True:
        race.trials.sort(key=lambda trial: trial.aim)
        if len(race.trials) <= count or swept >= task.sweeps or race.exhausted:
            return [trial.cores for trial in race.trials[:count]], race.spent
        more = min(swept, task.sweeps - swept)
        race.halve(more)
        swept += more


def _first_round(
    race: _Race, guesses: Iterable[Sequence[Array]], seed: int, starts: int, most: int, sweeps: int
) -> bool:
    """Sweep guesses and random starts; more of these if that is cheap. Whether it is."""
    x, network = race.task.x, race.task.network
    for cores in chain(guesses, (random_cores(x, network, seed + k) for k in range(starts))):
        race.run(cores, sweeps)
        if race.exhausted:
            break
    each = race.spent / len(race.trials)
    cheap = race.spent + each < _CHEAP
    if cheap and len(network.core_shapes) > 2:
        more = min(most - starts, int((_CHEAP - race.spent) / (each + 1.0)))
        race.run(singular_cores(x, network, seed), sweeps)
        for k in range(1, 1 + more):
            race.run(random_cores(x, network, seed + 1_000_003 * k), sweeps)
    return cheap


# ---------------------------------------------------------------- ends


def _finish(task: _Task, cores: Sequence[Array], work: float) -> tuple[list[_End], float]:
    """Sweep a start to the end with the ridge, then with less of it, then without; and the work spent.

    The ridge stays if removing it gains too little, or costs too much in bfloat16.
    """
    x, network, sweeps, tolerance, ridge = task
    descent = descend(x, network, cores, sweeps, tolerance, work, ridge)
    spent, error, ends = descent.work, descent.error, [_end(task, descent.cores)]
    if descent.aim**2 - error**2 <= _IDLE * error**2:
        return ends, spent
    for lower in (ridge / 30, 0.0):
        if error < _FINE:
            x, sweeps, tolerance = wide(x), 2 * task.sweeps, 0.02 * task.tolerance
        descent = descend(x, network, ends[-1].cores, sweeps, tolerance, work - spent, lower)
        spent, error = spent + descent.work, descent.error
        ends.append(_end(task._replace(x=x), descent.cores))
        before, after = ends[-2:]
        if not (after.exact <= before.exact and after.half <= _half_limit(task, ends)):
            break
    return ends, spent


def _best(task: _Task, ends: Sequence[_End]) -> _End:
    """The smallest error in the tensor's dtype, among the cores whose error in bfloat16 is acceptable."""
    limit = _half_limit(task, ends)
    return min((end for end in ends if end.half <= limit), key=lambda end: end.exact, default=ends[0])


def _half_limit(task: _Task, ends: Sequence[_End]) -> float:
    """Largest acceptable error in bfloat16.

    It is a little above the smallest one, and not below the error from rounding terms of the size of the weight.
    """
    return max(_DEARER * min(end.half for end in ends), 1.5 * sqrt(task.ridge))


def _end(task: _Task, cores: Sequence[Array]) -> _End:
    half = [rounded(core, _BFLOAT16) for core in cores]
    return _End(cores, _relative_error(task, cores), _relative_error(task, half))


def _relative_error(task: _Task, cores: Sequence[Array]) -> float:
    x, network = task.x, task.network
    short = [array_namespace(x).astype(core, x.dtype, copy=False) for core in cores]
    return norm(contract(network.operands, network.outer, short), x) / (norm(x) or 1.0)
