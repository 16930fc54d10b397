"""Alternating least squares for any network.

One sweep visits every core. With the other cores fixed, each core solves a linear least-squares problem of its own.

A sweep divides the cores in halves, again and again. The weight contracted with one half is shared by all cores of the
other half. Nesterov's momentum carries over from sweep to sweep. A sweep that increases the objective is discarded, and
momentum starts again.

In networks with cycles or hyperedges, terms may cancel, and the best cores may then be infinitely large. A ridge on the
squared norm of the terms keeps the cores bounded. Its size is the squared error that rounding the cores would add.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import inf, sqrt
from typing import NamedTuple, TypeAlias

from array_api_compat import array_namespace

from tnc.contract.executor import contract, run
from tnc.contract.order import Indices
from tnc.contract.plans import Plan, plan
from tnc.fit.core_problem import Sweep, problem_of
from tnc.fit.linalg import balance, norm
from tnc.fit.metric_sweep import MetricSweep, Weights
from tnc.network import Network
from tnc.typing import Array, Shape

__all__ = ["Descent", "descend"]

_BLIND = 1e-6
"""Below this relative error the difference of two energies is only rounding, so the error is measured directly."""

_EXACT = 1e-13
"""Relative error at which a descent stops."""


class Descent(NamedTuple):
    """Result of a descent.

    Attributes
    ----------
    cores : list of array
    error : float
        Relative error of the cores.
    work : float
        Multiplications and additions spent.
    aim : float
        The objective: root of the sum of squared error and ridge, relative to the weight's norm. It never grows.
    """

    cores: list[Array]
    error: float
    work: float
    aim: float = inf


def descend(
    x: Array,
    network: Network,
    cores: Sequence[Array],
    sweeps: int,
    tolerance: float,
    work: float = inf,
    ridge: float = 0.0,
    weights: Weights | None = None,
) -> Descent:
    """Sweeps of least squares over cores in float64.

    They minimize ``||T - x||^2 + ridge S``, where `S` is the squared norm of all terms (`tnc.contract.terms`). This sum
    never grows, except for the rounding of the weight's dtype.

    Parameters
    ----------
    x : array
        The weight, with one axis per outer index of the network. Products with the whole weight are computed in its
        dtype, everything else in float64.
    network : Network
        A network without a feed, of at least two cores.
    cores : sequence of array
        The start: one array for each of `network.core_shapes`.
    sweeps : int
        Largest number of sweeps.
    tolerance : float
        Stop when a sweep lowers the root of the sum above by less than this fraction.
    work : float
        Multiplications and additions: no sweep starts after more than these were spent.
    ridge : float
        Factor of `S`: the variance of the relative rounding error of all cores together.
    weights : Weights, optional
        The weight in a metric. Errors and norms are then those of the metric, and everything is in its dtype.

    Returns
    -------
    Descent
        The cores after the last sweep that did not increase the objective.

    References
    ----------
    Kolda and Bader (2009), sec. 3.4; Mitchell, Ye and De Sterck (2020) for momentum with restarts.
    """
    xp, energy = array_namespace(x), weights.energy if weights else norm(x) ** 2
    now = before = [xp.astype(core, weights.target.dtype if weights else xp.float64) for core in cores]
    error = aim = inf
    spent = 0.0
    momentum = 0  # number of sweeps since momentum last started
    for _ in range(sweeps):
        if spent > work:
            break
        sweep = _swept(x, network, _extrapolated(now, before, momentum), ridge, weights)
        spent += sweep.work
        new_error = _error(x, network, sweep, energy, weights)
        new_aim = sqrt(new_error**2 + sweep.ridge_cost / energy) if energy else 0.0
        if not new_aim <= aim:
            if momentum == 0:  # a sweep without momentum increases the objective by rounding only
                break
            momentum = 0
            continue
        drop = aim - new_aim
        error, aim = new_error, new_aim
        momentum += 1
        before, now = now, balance(sweep.cores)
        if drop <= tolerance * aim or error <= _EXACT:
            break
    return Descent(now, error, spent, aim)


def _extrapolated(now: Sequence[Array], before: Sequence[Array], momentum: int) -> list[Array]:
    """The cores, moved on in the direction of the last sweep (Nesterov)."""
    factor = momentum / (momentum + 3)
    return [new + factor * (new - old) for new, old in zip(now, before, strict=True)]


def _swept(x: Array, network: Network, cores: list[Array], ridge: float, weights: Weights | None) -> Sweep:
    """The cores after one sweep."""
    if weights is not None:
        in_metric = MetricSweep(network, cores, ridge, weights)
        in_metric.run()
        return in_metric
    sweep = _Sweep(network, cores, ridge)
    sweep.visit(_branches(network, tuple(range(len(cores))), network.outer), x)
    return sweep


def _error(x: Array, network: Network, sweep: Sweep, energy: float, weights: Weights | None) -> float:
    """Relative error after a sweep, from its energy. If that is too imprecise, the weight is rebuilt."""
    if not energy:
        return 0.0
    error = sqrt(max(energy - sweep.energy, 0.0) / energy)
    if weights is not None:
        eps = float(array_namespace(x).finfo(x.dtype).eps)
        return weights.error(network, sweep.cores) if error < max(_BLIND, 8 * sqrt(eps)) else error
    if not error < _BLIND:
        return error
    xp = array_namespace(x)
    short = [xp.astype(core, x.dtype, copy=False) for core in sweep.cores]
    return norm(contract(network.operands, network.outer, short) - x) / sqrt(energy)


# ---------------------------------------------------------------- a sweep


class Leaf(NamedTuple):
    """A single core, and the permutation of the contracted weight's axes into the order of the core's `Problem`."""

    core: int
    axes: Shape


class Branch(NamedTuple):
    """One half of a group of cores."""

    others: tuple[int, ...]  # cores of the other half, to be contracted with the tensor that belongs to the group
    plan: Plan  # of that contraction
    inside: Part  # what to do with the result


Part: TypeAlias = "Leaf | tuple[Branch, Branch]"
"""A group of cores: a single one, or two halves."""


@lru_cache(maxsize=1024)
def _branches(network: Network, group: tuple[int, ...], held: Indices) -> tuple[Branch, Branch]:
    """Both halves of a group of cores, whose tensor has the indices `held`."""
    half = len(group) // 2
    first, second = group[:half], group[half:]
    return _branch(network, first, second, held), _branch(network, second, first, held)


def _branch(network: Network, group: tuple[int, ...], others: tuple[int, ...], held: Indices) -> Branch:
    operands = network.operands
    needed = {i for k in group for i in operands[k]}
    parts = (held, *(operands[k] for k in others))
    keep = [i for i in dict.fromkeys(chain.from_iterable(parts)) if i in needed]
    keep.sort(key=lambda i: sum(i in core for core in operands) < 3)  # indices of three cores or more are batch axes
    step = plan(parts, tuple(keep), tuple(network.sizes.items()))
    if len(group) > 1:
        return Branch(others, step, _branches(network, group, tuple(keep)))
    (k,) = group
    return Branch(others, step, Leaf(k, tuple(keep.index(operands[k][axis]) for axis in problem_of(network, k).axes)))


class _Sweep(Sweep):
    """A sweep in the norm of the weight's entries, in float64."""

    def __init__(self, network: Network, cores: list[Array], ridge: float) -> None:
        super().__init__(network, cores, ridge)
        numbers = range(len(cores))
        self._problems = [problem_of(network, k) for k in numbers]
        # Core 0 is solved first, so nothing needs the factor of its old values.
        self._grams: list[list[Array]] = [[], *(self._gram(k) for k in numbers[1:])]
        self._squares = [self._square(k) for k in numbers] if ridge else []

    def visit(self, part: Part, tensor: Array) -> None:
        """Solve the cores of a part, given the weight contracted with all other cores."""
        if isinstance(part, Leaf):
            self._update(part, tensor)
            return
        for branch in part:
            self.visit(branch.inside, self._contracted(branch, tensor))

    def _contracted(self, branch: Branch, tensor: Array) -> Array:
        """The tensor of a group of cores, contracted with those of the branch's other half."""
        others = [self._xp.astype(self.cores[k], tensor.dtype, copy=False) for k in branch.others]
        self.work += branch.plan.flops
        return self._xp.astype(run(branch.plan, [tensor, *others], self._xp), self._xp.float64, copy=False)

    def _update(self, leaf: Leaf, right: Array) -> None:
        """Solve one core. `right` is the weight contracted with all other cores."""
        k = leaf.core
        grams = [factor for j, factors in enumerate(self._grams) if j != k for factor in factors]
        ridge = self._ridge_diagonal(k) if self._ridge else None
        self._solve(k, self._problems[k], grams, self._xp.permute_dims(right, leaf.axes), ridge)
        if k == len(self.cores) - 1:
            return
        self._grams[k] = self._gram(k)
        if self._ridge:
            self._squares[k] = self._square(k)

    def _gram(self, k: int) -> list[Array]:
        """Core `k`'s factor of the others' normal matrices (see `_gram_indices`)."""
        core, gram = self.cores[k], self._problems[k].gram
        return [core, core] if gram is None else [run(gram, [core, core], self._xp)]

    def _ridge_diagonal(self, k: int) -> Array:
        """What the ridge adds to the diagonal of core `k`'s normal matrices."""
        squares = [square for j, square in enumerate(self._squares) if j != k]
        return self._ridge * run(self._problems[k].weigh, squares, self._xp)
