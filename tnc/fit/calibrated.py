"""Fits of any network in a metric, from the fit of its decomposition to the weight itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import inf, prod
from typing import NamedTuple

from array_api_compat import array_namespace

from tnc.contract.executor import contract
from tnc.contract.order import Indices
from tnc.contract.padding import crop, pad
from tnc.fit import gradient
from tnc.fit.least_squares import descend
from tnc.fit.linalg import balance, divided, leading, norm
from tnc.fit.metric import Metric, marginals, metric_of, roots
from tnc.fit.metric_sweep import Weights
from tnc.fit.unfolding import ordered, tensorize, unfold
from tnc.network import Network
from tnc.typing import Array, Cores, Shape

__all__ = ["calibrated", "whitened", "whitened_cores"]

Fit = Callable[[Array], list[Array]]
"""Fits the cores of a network to a weight."""

_FIRST, _SWEEPS, _TOLERANCE = 8, 32, 1e-3
"""Sweeps of each start, largest number of sweeps, and the relative drop of the error at which they end."""

_WORK = 4e11
"""Largest number of multiplications and additions of all sweeps of a fit."""

_ROUNDING = 0.54 * 4.0**-7 / 12
"""As in `tnc.fit.alternating`: variance of the relative rounding error of a number in bfloat16."""


def calibrated(
    x: Array,
    network: Network,
    metric: Metric | Array,
    fit: Fit,
    *,
    start: Cores | None = None,
    sweeps: int = _SWEEPS,
) -> list[Array]:
    """Cores that approximate a weight in the norm of a metric. Never worse there than their start.

    The start is `fit` of the weight, unless cores are given. For a tree there is another one, `fit` of the weight times
    the square root of a metric that is a product over single indices, as near to the given one as partial traces are.
    The better one after a few sweeps is swept to the end. Networks with a feed go on by gradients. Where a network
    overshoots an axis that the metric does not weigh, entries beyond the weight count as zeros, as in fits without a
    metric.

    Parameters
    ----------
    x : array
        The weight, float32 or float64.
    network : Network
    metric : Metric or array
        The metric, or the second moment of the inputs: (columns x kernel, columns x kernel).
    fit : callable
        Fits the network to a weight without a metric.
    start : sequence of array, optional
        Cores to go on from: those of a weight that is nearly the same. No other start is tried then.
    sweeps : int
        Largest number of sweeps over all cores.

    Returns
    -------
    list of array
        Cores in the dtype of `x`, of equal norms.

    Raises
    ------
    WeightError
        The metric is not one for a weight of this shape.
    """
    task = _task(x, network, metric)
    if task is None:
        return fit(x) if start is None else list(start)
    unit = task.weights.x
    starts = [] if start is None else [balance(start, 1 / task.size)]
    if network.feed is not None:
        return task.descended(network, starts[0] if starts else fit(unit))
    if network.is_tree and (start is None or len(network.operands) == 2):
        if (closed := _projected(unit, network, task.metric)) is not None:
            return balance(closed, task.size)
        cores, exact = whitened_cores(unit, network, task.metric, fit)
        if exact:
            return balance(cores, task.size)
        starts = starts or [cores]
    return task.best(network, starts if start is not None else [fit(unit), *starts], sweeps)


def _projected(x: Array, network: Network, metric: Metric) -> list[Array] | None:
    """The best cores of a matrix product ``U V`` in a metric on the indices of `V` only: ``V = U^T X``.

    The columns of ``U`` are the leading eigenvectors of ``X S X^T``. This needs no root of the metric. None where the
    network or the metric is another one, or where a root takes less time.
    """
    right = _weighed_core(network, metric)
    if right is None:
        return None
    (bond,) = network.bonds
    rows = [i for i in network.operands[1 - right] if i != bond]
    matrix, columns = unfold(tensorize(x, network), network.outer, rows)
    if matrix.shape[0] > matrix.shape[1]:
        return None
    xp, rank = array_namespace(x), network.sizes[bond]
    image, _ = unfold(Weights.of(x, network, metric.like(x)).target, network.outer, rows)
    basis = leading(xp.matmul(image, xp.matrix_transpose(matrix)), rank)
    basis = pad(basis, (matrix.shape[0], rank), xp)
    shape = tuple(network.sizes[i] for i in rows)
    cores = [xp.reshape(basis, (*shape, rank)), xp.matmul(xp.matrix_transpose(basis), matrix)]
    held = [[*rows, bond], [bond, *columns]]
    cores[1] = xp.reshape(cores[1], tuple(network.sizes[i] for i in held[1]))
    order = [1 - right, right]
    return [ordered(cores[order.index(k)], held[order.index(k)], network.operands[k]) for k in range(2)]


def _weighed_core(network: Network, metric: Metric) -> int | None:
    """The number of the only core with indices that a metric weighs; None if there is no such core."""
    if len(network.operands) != 2 or len(metric.factors) != 1 or metric.factors[0].along:
        return None
    own = set(chain.from_iterable(network.axes[axis] for axis in metric.factors[0].axes))
    holders = [k for k, core in enumerate(network.operands) if own & set(core)]
    return holders[0] if len(holders) == 1 and own <= set(network.operands[holders[0]]) else None


class _Task(NamedTuple):
    """A weight of norm 1 in its dtype, a normalized metric in float64, and the norm of the weight as it was given."""

    weights: Weights
    metric: Metric
    size: float

    def descended(self, network: Network, start: Cores) -> list[Array]:
        """Cores of a network with a feed, by gradients."""
        unit = self.weights.x
        return gradient.scaled(gradient.descend(unit, network, start, metric=self.weights.metric), network, self.size)

    def best(self, network: Network, starts: Sequence[Cores], sweeps: int) -> list[Array]:
        """The best of some cores, swept."""
        weights = self.weights
        ridge = 0.0 if network.is_tree else _ROUNDING * len(network.core_shapes)
        ends = list(starts)
        swept, sweeps = ends, sweeps - _FIRST
        if len(starts) > 1:
            swept = [self._swept(network, cores, _FIRST, ridge) for cores in ends]
        leader = min(swept, key=lambda cores: _rank(weights.error(network, cores)))
        ends = [*ends, *swept, self._swept(network, leader, sweeps, ridge)]
        best = min(ends, key=lambda cores: _rank(weights.error(network, cores)))
        return balance(best, self.size)

    def _swept(self, network: Network, cores: Cores, sweeps: int, ridge: float) -> Cores:
        start, weights = balance(cores), self.weights
        return descend(weights.x, network, start, sweeps, _TOLERANCE, _WORK, ridge, weights).cores


def _task(x: Array, network: Network, metric: Metric | Array) -> _Task | None:
    """What a fit in a metric needs; None for a weight of zeros, or one that no input reaches."""
    metric = metric_of(metric, tuple(x.shape))
    size = norm(x)
    if not size:
        return None
    unit, metric = divided(x, size), metric.normalized().like(x, array_namespace(x).float64)
    if not metric.energy(unit) > 0.0:
        return None
    return _Task(Weights.of(unit, network, metric.like(x)), metric, size)


def whitened_cores(x: Array, network: Network, metric: Metric, fit: Fit) -> tuple[list[Array], bool]:
    """The fit of a weight times the root of a metric, with the root undone; and whether no cores can be better.

    Parameters
    ----------
    x : array
    network : Network
    metric : Metric
        Normalized.
    fit : callable
        Fits the network to a weight without a metric.
    """
    scales = _scales(metric, network, tuple(x.shape))
    if scales is None:
        return fit(x), False
    cores = scales.undone(network, fit(scales.applied(x, network)))
    return cores, scales.exact and network.is_tree and len(cores) == 2


def _rank(error: float) -> float:
    """An error to compare by: NaN is the largest."""
    return error if error == error else inf


def whitened(x: Array, network: Network, metric: Metric | Array) -> Array:
    """The weight times a root of a metric, for ranks that are chosen by singular values.

    Where one core has all indices of a factor, its exact root is used. Elsewhere it is that of partial traces over the
    indices, so that indices of different cores are not mixed.

    Parameters
    ----------
    x : array
    network : Network
        A network for the weight. Its ranks do not matter.
    metric : Metric or array

    Returns
    -------
    array
        In the shape and dtype of `x`.
    """
    xp = array_namespace(x)
    metric = metric_of(metric, tuple(x.shape)).normalized().like(x, xp.float64)
    scales = _scales(metric, network, tuple(x.shape))
    return x if scales is None else scales.applied(x, network)


class _Scales(NamedTuple):
    """Roots of matrices over indices of a network, and their pseudoinverses."""

    indices: tuple[tuple[str, ...], ...]  # of each root; one core has all of them
    roots: tuple[Array, ...]
    inverses: tuple[Array, ...]
    exact: bool  # whether the roots are those of the metric, not of one that is near to it

    def applied(self, x: Array, network: Network) -> Array:
        """The weight times the roots, in its own shape."""
        xp = array_namespace(x)
        tensor = xp.reshape(pad(x, network.shape, xp), tuple(network.sizes[i] for i in network.outer))
        for indices, root in zip(self.indices, self.roots, strict=True):
            tensor = _times(tensor, network.outer, indices, xp.astype(root, x.dtype), network)
        return crop(xp.reshape(tensor, network.shape), tuple(x.shape))

    def undone(self, network: Network, cores: Cores) -> list[Array]:
        """Cores for the weight, from those for the weight times the roots."""
        xp, cores = array_namespace(*cores), list(cores)
        for indices, inverse in zip(self.indices, self.inverses, strict=True):
            k = next(k for k, names in enumerate(network.operands) if set(indices) <= set(names))
            cores[k] = _times(cores[k], network.operands[k], indices, xp.astype(inverse, cores[k].dtype), network)
        return cores


def _times(x: Array, held: Indices, indices: Indices, matrix: Array, network: Network) -> Array:
    """An array times a matrix from the right, or the diagonal of one, over some of its indices."""
    xp = array_namespace(x)
    sizes = tuple(network.sizes[i] for i in indices)
    if matrix.ndim == 1:
        return contract([held, indices], held, [x, xp.reshape(matrix, sizes)])
    second = tuple(f"{i}'" for i in indices)
    turned = tuple(f"{i}'" if i in indices else i for i in held)
    return contract([held, (*indices, *second)], turned, [x, xp.reshape(matrix, (*sizes, *sizes))])


def _scales(metric: Metric, network: Network, shape: Shape) -> _Scales | None:
    """Square roots of a metric over indices that one core has. None if no index is weighed, or one is in two cores."""
    weighed = set(chain.from_iterable(_indices(network, factor.axes) for factor in metric.factors))
    held = list(chain.from_iterable(network.operands))
    if not weighed or any(held.count(i) != 1 for i in weighed):
        return None
    parts: list[tuple[Indices, tuple[Array, Array]]] = []
    exact = True
    for number, (factor, array) in enumerate(zip(metric.factors, metric.arrays(network, shape), strict=True)):
        own, along = _indices(network, factor.axes), _indices(network, factor.along)
        groups = _groups(network, own)
        exact = exact and len(groups) == 1 and not along
        if len(groups) == 1 and not along and prod(array.shape) == prod(factor.matrix.shape):  # without padding
            parts.append((own, metric.roots(number)))
        else:
            parts += _parts(own, along, groups, array, factor.diagonal)
    return _Scales(
        tuple(own for own, _ in parts), tuple(r for _, (r, _) in parts), tuple(i for _, (_, i) in parts), exact
    )


def _parts(
    own: Indices, along: Indices, groups: Sequence[Indices], array: Array, diagonal: bool
) -> list[tuple[Indices, tuple[Array, Array]]]:
    """Roots over groups of indices, whose product is near a factor's. Those that differ along an axis are averaged."""
    mean = array_namespace(array).mean(array, axis=tuple(range(len(along)))) if along else array
    blocks = (_diagonals if diagonal else _blocks)(own, groups, mean)
    return [(group, roots(matrix)) for group, matrix in blocks]


def _groups(network: Network, own: Indices) -> list[Indices]:
    """Some indices, sorted by the cores that have them."""
    return [tuple(i for i in own if i in core) for core in network.operands if set(own) & set(core)]


def _indices(network: Network, axes: Shape) -> Indices:
    """The indices of some axes of a network."""
    return tuple(chain.from_iterable(network.axes[axis] for axis in axes))


def _diagonals(own: Indices, groups: Sequence[Indices], array: Array) -> list[tuple[Indices, Array]]:
    """Diagonals over groups of indices, whose product is near a diagonal over all of them: partial means."""
    xp, mean = array_namespace(array), float(array_namespace(array).mean(array))
    parts = []
    for k, group in enumerate(groups):
        rest = tuple(axis for axis, i in enumerate(own) if i not in group)
        part = xp.mean(array, axis=rest) if rest else array
        parts.append((group, xp.reshape(part / mean if k else part, (-1,))))
    return parts


def _blocks(own: Indices, groups: Sequence[Indices], array: Array) -> list[tuple[Indices, Array]]:
    """Matrices over groups of indices, whose product is near a matrix over all of them (see `marginals`)."""
    xp, order = array_namespace(array), [own.index(i) for i in chain.from_iterable(groups)]
    sizes = [prod(array.shape[own.index(i)] for i in group) for group in groups]
    array = xp.permute_dims(array, (*order, *(len(own) + k for k in order)))
    return list(zip(groups, marginals(xp.reshape(array, (prod(sizes), -1)), sizes), strict=True))
