"""Sweeps of least squares in a metric: a metric is one more operand, which no sweep changes.

With the other cores fixed, each core solves a linear problem. Its normal matrix is the network without the core, the
metric, and a second copy of the network without the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from array_api_compat import array_namespace

from tnc.contract.executor import run
from tnc.contract.order import Indices
from tnc.contract.padding import crop, pad
from tnc.contract.plans import Plan, plan
from tnc.contract.recipes import dense
from tnc.fit.core_problem import Problem, Roles, Sweep, square_indices, work_of_a_step
from tnc.fit.metric import Metric
from tnc.network import Network
from tnc.typing import Array, Shape

__all__ = ["MetricSweep", "Weights"]


class _Task(NamedTuple):
    """The problem of one core in a metric, as plans."""

    problem: Problem
    right: Plan  # from the metric times the weight, and the other cores, to the right-hand side
    ridge: Shape  # where the diagonal of the ridge has axes of the core, in the problem's order; 1 elsewhere


def _sorted(network: Network, k: int, factors: tuple[Indices, ...], doubled: frozenset[str]) -> Roles:
    """Indices of core `k`. Outer indices that the metric couples are rows of the normal matrix, too."""
    shared = {i for j, core in enumerate(network.operands) if j != k for i in core} | set(chain.from_iterable(factors))
    inner = _coupled(network, doubled) & set(network.operands[k])
    rest = [i for i in network.operands[k] if i not in inner]
    return Roles(
        batch=tuple(i for i in rest if i in shared),
        inner=tuple(i for i in network.operands[k] if i in inner),
        free=tuple(i for i in rest if i not in shared),
    )


def _second(names: Indices, coupled: set[str]) -> Indices:
    """Names of the second copy."""
    return tuple(f"{i}'" if i in coupled else i for i in names)


def _coupled(network: Network, doubled: frozenset[str]) -> set[str]:
    """Indices that differ in the two copies of the network: bonds, and outer indices that the metric couples."""
    return {i for i in chain.from_iterable(network.operands) if i in doubled or i not in network.outer}


@lru_cache(maxsize=1024)
def _task(network: Network, k: int, factors: tuple[Indices, ...], doubled: frozenset[str]) -> _Task:
    """Everything about the problem of core `k` that does not depend on the arrays."""
    size, coupled = network.sizes, _coupled(network, doubled)
    roles = _sorted(network, k, factors, doubled)
    batch, inner, free = roles
    order, others = (*batch, *inner, *free), [j for j in range(len(network.operands)) if j != k]
    cores = [network.operands[j] for j in others]

    fixed = (*cores, *(_second(core, coupled) for core in cores), *factors)
    sizes = tuple((i + mark, n) for i, n in size.items() for mark in ("", "'"))
    multiply = plan((*fixed, _second(order, coupled)), order, sizes)
    weighed = tuple(i for i in (*batch, *inner) if i in chain.from_iterable(cores))
    problem = Problem.of(
        network,
        k,
        roles,
        gram=None,
        form=plan(fixed, (*batch, *inner, *_second(inner, coupled)), sizes),
        multiply=multiply,
        weigh=plan(tuple(square_indices(network, j) for j in others), weighed, tuple(size.items())),
        step=work_of_a_step(multiply) / 4,  # the next sweep starts near: exact solutions are worth no more work
    )
    right = plan((network.outer, *cores), order, tuple(size.items()))
    return _Task(problem, right, tuple(size[i] if i in weighed else 1 for i in (*batch, *inner)))


class MetricSweep(Sweep):
    """A sweep in the norm of a metric.

    Parameters
    ----------
    network : Network
    cores : list of array
    ridge : float
    weights : Weights
    """

    def __init__(self, network: Network, cores: list[Array], ridge: float, weights: Weights) -> None:
        super().__init__(network, cores, ridge)
        self._weights = weights

    def run(self) -> None:
        """Solve every core once."""
        for k in range(len(self.cores)):
            self._update(k)

    def _update(self, k: int) -> None:
        weights = self._weights
        task = _task(self._network, k, weights.names, weights.doubled)
        others = [core for j, core in enumerate(self.cores) if j != k]
        right = run(task.right, [weights.target, *others], self._xp)
        self.work += task.right.flops
        ridge = self._ridge_diagonal(k, task) if self._ridge else None
        self._solve(k, task.problem, [*others, *others, *weights.arrays], right, ridge)

    def _ridge_diagonal(self, k: int, task: _Task) -> Array:
        """What the ridge adds to the diagonal of core `k`'s normal matrices: (batch axes, inner axes)."""
        squares = [self._square(j) for j in range(len(self.cores)) if j != k]
        diagonal = self._ridge * run(task.problem.weigh, squares, self._xp)
        lead = task.problem.shape[: len(task.ridge)]
        return self._xp.broadcast_to(self._xp.reshape(diagonal, task.ridge), lead)


class Weights(NamedTuple):
    """A weight and a metric, ready for sweeps.

    Attributes
    ----------
    x : array
        The weight.
    metric : Metric
    target : array
        The metric times the weight, with one axis per outer index.
    energy : float
        The squared norm of the weight.
    names : tuple of tuple of str
        Indices of the factors of the metric.
    doubled : frozenset of str
        Outer indices that the metric couples.
    arrays : list of array
        The factors of the metric.
    """

    x: Array
    metric: Metric
    target: Array
    energy: float
    names: tuple[Indices, ...]
    doubled: frozenset[str]
    arrays: list[Array]

    def error(self, network: Network, cores: Sequence[Array]) -> float:
        """Relative error of cores in the metric, measured on the rebuilt weight."""
        y = crop(dense(network, cores), tuple(self.x.shape))
        return self.metric.error(self.x, y)

    @classmethod
    def of(cls, x: Array, network: Network, metric: Metric) -> Weights:
        """Prepare a weight, in its own dtype.

        Parameters
        ----------
        x : array
        network : Network
            A network for the weight, without a feed.
        metric : Metric
            In the dtype of the weight.
        """
        xp, shape = array_namespace(x), tuple(x.shape)
        names, _, doubled = metric.operands(network)
        image = metric.apply(x)
        target = xp.reshape(pad(image, network.shape, xp), tuple(network.sizes[i] for i in network.outer))
        return cls(x, metric, target, float(xp.sum(x * image)), tuple(names), doubled, metric.arrays(network, shape))
