"""The linear least-squares problem of one core, with all other cores fixed, and two solvers for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from math import prod
from typing import NamedTuple, TypeAlias

from array_api_compat import array_namespace, device

from tnc.contract.executor import Executor, changing, run
from tnc.contract.order import Indices
from tnc.contract.plans import Plan, plan
from tnc.network import Network
from tnc.typing import Array, Namespace, Shape

__all__ = ["FORMED", "STEPS", "Problem", "Roles", "Sweep", "problem_of", "square_indices", "work_of_a_step"]

FORMED = 4096
"""Largest side of a normal matrix that is formed and solved directly, unless conjugate gradients are far cheaper."""

STEPS = 10
"""Most steps of conjugate gradients per core and sweep."""

_RIDGE = 1e-11
"""Weight of the distance to the old core, relative to the mean of the normal matrix's diagonal."""


class Roles(NamedTuple):
    """Indices of one core, sorted by the other places that they stand in."""

    batch: Indices  # in other cores and in the weight: one separate problem for each value
    inner: Indices  # in other cores only: rows of the normal matrix
    free: Indices  # in no other core: one right-hand side for each value


class Problem(NamedTuple):
    """Plans and sizes for solving one core. They depend on the network only."""

    axes: Shape  # permutation of the core's axes into the order batch, inner, free
    back: Shape  # the inverse permutation
    shape: Shape  # of the core in that order
    batch: int  # number of separate problems
    side: int  # of each normal matrix
    gram: Plan | None  # the core and its copy to the core's factor of the others' normal matrices
    form: Plan  # the others' factors to the normal matrices: (batch, inner, inner')
    multiply: Plan  # the others' factors and a core to normal matrix times core
    weigh: Plan  # the others' squares to the diagonal of the ridge: (batch, inner)
    iterate: bool  # conjugate gradients, not a direct solver

    @classmethod
    def of(
        cls, network: Network, k: int, roles: Roles, *, gram: Plan | None, form: Plan, multiply: Plan, weigh: Plan,
        step: float,
    ) -> Problem:  # fmt: skip
        """The problem of core `k` from its plans.

        Parameters
        ----------
        network : Network
        k : int
        roles : Roles
            Its indices.
        gram, form, multiply, weigh : Plan
        step : float
            Work of a step of conjugate gradients.
        """
        names, size, order = network.operands[k], network.sizes, (*roles.batch, *roles.inner, *roles.free)
        batch, side = (prod(size[i] for i in part) for part in (roles.batch, roles.inner))
        return cls(
            axes=tuple(names.index(i) for i in order),
            back=tuple(order.index(i) for i in names),
            shape=tuple(size[i] for i in order),
            batch=batch,
            side=side,
            gram=gram,
            form=form,
            multiply=multiply,
            weigh=weigh,
            iterate=_iterates(batch, side, form, step),
        )


class Sweep:
    """One pass over all cores in their order: each is solved with the others fixed.

    Parameters
    ----------
    network : Network
    cores : list of array
    ridge : float

    Attributes
    ----------
    cores : list of array
    energy : float
        Reduction of the squared error by the cores, once the last core is solved.
    ridge_cost : float
        Ridge times the squared norm of the terms, once the last core is solved.
    work : float
        Multiplications and additions.
    """

    def __init__(self, network: Network, cores: list[Array], ridge: float) -> None:
        self.cores, self._network, self._ridge, self._xp = list(cores), network, ridge, array_namespace(*cores)
        self.energy = self.ridge_cost = self.work = 0.0

    def _solve(self, k: int, problem: Problem, grams: list[Array], right: Array, ridge: Array | None) -> None:
        """Solve one core, and keep the energies if it is the last one.

        Parameters
        ----------
        k : int
            Number of the core.
        problem : Problem
        grams : list of array
            Factors of the normal matrices.
        right : array
            Right-hand sides, with axes in the order batch, inner, free.
        ridge : array, optional
            What the ridge adds to the diagonals of the normal matrices.
        """
        last, xp = k == len(self.cores) - 1, self._xp
        system = System(problem, grams, right, ridge, xp)
        new, energies, work = solve(system, xp.permute_dims(self.cores[k], problem.axes), last)
        self.cores[k] = xp.permute_dims(new, problem.back)
        self.work += work
        if last:
            self.energy, self.ridge_cost = energies

    def _square(self, k: int) -> Array:
        """Core `k`'s factor of the squared norm of the terms (see `square_indices`)."""
        held, square = square_indices(self._network, k), self.cores[k] * self.cores[k]
        own = tuple(axis for axis, i in enumerate(self._network.operands[k]) if i not in held)
        return self._xp.sum(square, axis=own) if own else square


def _shared(network: Network, k: int) -> set[str]:
    """Indices of all cores but core `k`."""
    return {i for j, other in enumerate(network.operands) if j != k for i in other}


def roles_of(network: Network, k: int) -> Roles:
    """Indices of core `k`, sorted by the other places that they stand in."""
    names, shared, outer = network.operands[k], _shared(network, k), network.outer
    held = [i for i in names if i in shared]
    return Roles(
        batch=tuple(i for i in held if i in outer),
        inner=tuple(i for i in held if i not in outer),
        free=tuple(i for i in names if i not in shared),
    )


def square_indices(network: Network, k: int) -> Indices:
    """Indices of core `k` that other cores have, too: those of its factor of the squared norm of the terms."""
    shared = _shared(network, k)
    return tuple(i for i in network.operands[k] if i in shared)


def _primed(network: Network, names: Indices) -> Indices:
    """Names for the second copy of a core: bonds get a prime, outer indices are the same in both copies."""
    return tuple(i if i in network.outer else f"{i}'" for i in names)


def _gram_indices(network: Network, k: int) -> tuple[Indices, ...]:
    """Indices of core `k`'s factor of the others' normal matrices.

    The factor is the core times its copy, summed over the indices that no other core has. If it would be a matrix of a
    side larger than `FORMED`, the core and its copy stay two factors. A smaller matrix is not formed either if it has
    more entries than the core and a side above a sixteenth of `FORMED`. The normal matrices of every other core would
    read all of its entries.
    """
    names, roles = network.operands[k], roles_of(network, k)
    primed = _primed(network, names)
    side, free = (prod(network.sizes[i] for i in part) for part in (roles.inner, roles.free))
    if side > FORMED or side > max(FORMED // 16, free):
        return names, primed
    pairs = [pair for pair in zip(names, primed, strict=True) if pair[0] not in roles.free]
    return (tuple(dict.fromkeys(chain.from_iterable(pairs))),)


@lru_cache(maxsize=1024)
def problem_of(network: Network, k: int) -> Problem:
    """Everything about the problem of core `k` that does not depend on the arrays."""
    names, size = network.operands[k], network.sizes
    batch, inner, free = roles_of(network, k)
    order, primed = (*batch, *inner, *free), _primed(network, inner)
    # Sizes of all indices and of their primed copies.
    sizes = tuple((i + mark, n) for i, n in size.items() for mark in ("", "'"))

    own, others = _gram_indices(network, k), [j for j in range(len(network.operands)) if j != k]
    factors = tuple(chain.from_iterable(_gram_indices(network, j) for j in others))
    multiply = plan((*factors, (*batch, *primed, *free)), order, sizes)
    return Problem.of(
        network,
        k,
        Roles(batch, inner, free),
        gram=plan((names, _primed(network, names)), own[0], sizes) if len(own) == 1 else None,
        form=plan(factors, (*batch, *inner, *primed), sizes),
        multiply=multiply,
        weigh=plan(tuple(square_indices(network, j) for j in others), (*batch, *inner), tuple(size.items())),
        step=multiply.flops,
    )


def _iterates(batch: int, side: int, form: Plan, step: float) -> bool:
    """Whether conjugate gradients solve a core: if its normal matrix is too large, or takes far more work.

    Parameters
    ----------
    batch, side : int
        Number and side of the normal matrices.
    form : Plan
        Makes these matrices.
    step : float
        Work of a step of conjugate gradients. An exact solution may take as much as four times all steps.
    """
    if side > FORMED:
        return True
    return side > FORMED // 16 and form.flops + batch * side**3 > 4 * STEPS * step


def work_of_a_step(multiply: Plan) -> int:
    """Multiplications and additions of one step of conjugate gradients. What does not change is computed once."""
    return sum(2 * w.many * w.m * w.n * w.k for w in (multiply.work[t] for t in changing(multiply)))


class System(NamedTuple):
    """The linear system of one core."""

    problem: Problem
    grams: list[Array]  # factors of the normal matrices
    right: Array  # right-hand sides: (batch axes, inner axes, free axes)
    ridge: Array | None  # diagonal that is added to the normal matrices: (batch axes, inner axes)
    xp: Namespace


Energies: TypeAlias = tuple[float, float]
"""Reduction of the squared error by the cores, and cost of the ridge. Zeros unless asked for."""


def solve(system: System, old: Array, energies: bool) -> tuple[Array, Energies, float]:
    """A core that lowers the squared error plus ridge as far as the problem's solver can.

    Parameters
    ----------
    system : System
    old : array
        The present core, with axes in the order batch, inner, free, as in the result.
    energies : bool
        Whether to compute the energies.

    Returns
    -------
    new : array
        With axes in the same order.
    energies : tuple of float
        By how much the cores reduce the squared error, and the ridge times the squared norm of the terms.
    work : float
        Multiplications and additions.
    """
    solver = _iterated if system.problem.iterate else _direct
    return solver(system, old, energies)


def _iterated(system: System, old: Array, energies: bool) -> tuple[Array, Energies, float]:
    """A better core by conjugate gradients, its energies and the work."""
    problem, grams, right, ridge, xp = system
    if ridge is not None:
        ridge = xp.reshape(ridge, ridge.shape + (1,) * (old.ndim - ridge.ndim))

    multiplied = Executor(xp).bound(problem.multiply, grams)

    def normal(v: Array) -> Array:
        image = multiplied(v)
        return image if ridge is None else image + ridge * v

    new, residual, count = _conjugate(normal, right, old, xp)
    energy = cost = 0.0
    if energies:
        cost = 0.0 if ridge is None else float(xp.sum(ridge * new * new))
        energy = float(xp.sum(new * (right + residual))) + cost
    work = problem.multiply.flops + (count - 1) * work_of_a_step(problem.multiply)
    return new, (energy, cost), work


def _direct(system: System, old: Array, energies: bool) -> tuple[Array, Energies, float]:
    """The best core by a direct solver, its energies and the work."""
    problem, grams, right, ridge, xp = system
    b, n = problem.batch, problem.side
    gram = xp.reshape(run(problem.form, grams, xp), (b, n, n))
    right, old = xp.reshape(right, (b, n, -1)), xp.reshape(old, (b, n, -1))
    level = max(_RIDGE, 4 * float(xp.finfo(gram.dtype).eps)) * float(xp.sum(xp.linalg.trace(gram))) / (b * n) or 1e-30
    eye = xp.eye(n, dtype=gram.dtype, device=device(gram))
    if ridge is None:
        ridge = xp.zeros((b, n, 1), dtype=gram.dtype, device=device(gram))
    ridge = xp.reshape(ridge, (b, n, 1))
    # `level` adds the distance to the old core, not to zero. So no step increases the objective, however singular the
    # matrix is.
    new = xp.linalg.solve(gram + (level + ridge) * eye, right + level * old)
    energy = cost = 0.0
    if energies:
        energy = float(xp.sum(new * (2 * right - xp.matmul(gram, new))))
        cost = float(xp.sum(ridge * new * new))
    return xp.reshape(new, problem.shape), (energy, cost), problem.form.flops + b * n**3


def _conjugate(normal: Callable[[Array], Array], right: Array, new: Array, xp: Namespace) -> tuple[Array, Array, int]:
    """Conjugate gradients from the old values: every step lowers the error.

    Returns
    -------
    new, residual : array
        The solution and ``right - normal(new)``.
    count : int
        Number of calls of `normal`.
    """
    residual, count = right - normal(new), 1
    direction, size = residual, float(xp.sum(residual * residual))
    for _ in range(STEPS):
        image, count = normal(direction), count + 1
        curvature = float(xp.sum(direction * image))
        if curvature <= 0.0:  # solved, or only rounding is left
            break
        step = size / curvature
        new, residual = new + step * direction, residual - step * image
        last, size = size, float(xp.sum(residual * residual))
        if size <= 1e-28 * last:
            break
        direction = residual + size / last * direction
    return new, residual, count
