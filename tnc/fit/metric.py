"""A metric weighs the errors of a weight: in the norm of a layer's outputs instead of that of its entries.

With the second moment ``S`` of the inputs of a layer, the mean squared error of its outputs is ``tr(E S E^T)``, where
``E`` is the error of the weight. With the second moment ``G`` of the gradients at its outputs, ``tr(G E S E^T) / 2``
predicts the rise of the loss. A metric is such a product of positive semidefinite matrices, each over some axes of the
weight. In a contraction it is some more operands that no fit changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod, sqrt
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from tnc.contract.executor import contract
from tnc.contract.order import Indices
from tnc.contract.padding import pad
from tnc.errors import WeightError
from tnc.network import Network
from tnc.roles import roles
from tnc.typing import Array, Shape

__all__ = ["Factor", "Metric", "marginals", "metric_of", "roots"]

_RANK = 1e-12
"""Smaller eigenvalues than this share of the largest one count as zero."""
_REGULAR = 1e-8
"""A matrix whose pivots are all above this share of the largest one is far from singular."""
_LARGE = 64
"""Roots of smaller matrices take no time."""


class Factor(NamedTuple):
    """A positive semidefinite matrix over some axes of a weight.

    Attributes
    ----------
    axes : tuple of int
        The axes of the weight that the matrix acts on, merged in row-major order: ``n`` entries in all.
    matrix : array
        ``(n, n)``; a diagonal matrix as its diagonal ``(n,)``; with one leading axis for each of `along`.
    along : tuple of int
        Axes of the weight along which the matrices differ, such as that of a stack.
    """

    axes: tuple[int, ...]
    matrix: Array
    along: tuple[int, ...] = ()

    @property
    def diagonal(self) -> bool:
        """Whether the matrix is given by its diagonal."""
        return len(self.matrix.shape) == len(self.along) + 1


@dataclass(frozen=True, eq=False)
class Metric:
    """A product of positive semidefinite matrices over disjoint axes of a weight.

    Parameters
    ----------
    factors : tuple of Factor
        No axis of the weight is in the `axes` of two factors. Axes in none of them have the identity.

    Raises
    ------
    WeightError
        An axis stands in two factors, or a matrix is not square.
    """

    factors: tuple[Factor, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        axes = list(chain.from_iterable(factor.axes for factor in self.factors))
        if len(set(axes)) != len(axes):
            raise WeightError(f"a metric with the axes {axes}: each axis may stand in one factor only")
        for factor in self.factors:
            shape = tuple(factor.matrix.shape)
            if not factor.diagonal and (len(shape) != len(factor.along) + 2 or shape[-1] != shape[-2]):
                raise WeightError(f"a metric's matrix of shape {shape} for the axes {factor.axes} is not square")

    def check(self, shape: Shape) -> None:
        """Raise a `WeightError` if the metric is not one for weights of this shape."""
        for factor in self.factors:
            places = [*factor.axes, *factor.along]
            known = all(0 <= axis < len(shape) for axis in places)
            expected = known and (*(shape[axis] for axis in factor.along), prod(shape[axis] for axis in factor.axes))
            given = tuple(factor.matrix.shape)
            if not known or (given if factor.diagonal else given[:-1]) != expected:
                raise WeightError(
                    f"a metric of shape {given} over the axes {factor.axes} is not one for a weight of shape {shape}"
                )

    def apply(self, y: Array) -> Array:
        """The metric times `y`, an array of the weight's shape."""
        names = tuple(f"w{k}" for k in range(y.ndim))
        operands, arrays, out = [names], [y], list(names)
        for factor in self.factors:
            left = tuple(names[axis] for axis in factor.axes)
            along = tuple(names[axis] for axis in factor.along)
            right = left if factor.diagonal else tuple(f"{name}'" for name in left)
            sizes = tuple(y.shape[axis] for axis in factor.axes)
            lead = tuple(factor.matrix.shape[: len(along)])
            shape = (*lead, *sizes) if factor.diagonal else (*lead, *sizes, *sizes)
            xp = array_namespace(y)
            operands.append((*along, *left) if factor.diagonal else (*along, *right, *left))
            arrays.append(xp.reshape(xp.astype(factor.matrix, y.dtype, copy=False), shape))
            for axis, name in zip(factor.axes, right, strict=True):
                out[axis] = name
        return contract(operands, tuple(out), arrays)

    def energy(self, y: Array) -> float:
        """The squared norm of `y`."""
        xp = array_namespace(y)
        return max(float(xp.sum(xp.astype(y, xp.float64) * xp.astype(self.apply(y), xp.float64))), 0.0)

    def error(self, x: Array, y: Array) -> float:
        """Norm of ``x - y``, relative to that of `x`; 0 for two arrays of norm zero."""
        gap, size = self.energy(x - y), self.energy(x)
        return sqrt(gap / size) if size else (0.0 if gap == 0.0 else float("inf"))

    def normalized(self) -> Metric:
        """The metric, scaled so that the mean diagonal of each factor is 1. A factor of zeros becomes the identity."""
        return self._changed([_normalized(factor) for factor in self.factors])

    def _changed(self, factors: Sequence[Factor]) -> Metric:
        """A metric with other factors; this one, which may have roots already, if none is another."""
        same = all(new.matrix is old.matrix for new, old in zip(factors, self.factors, strict=True))
        return self if same else Metric(tuple(factors))

    @cached_property
    def _roots(self) -> dict[int, tuple[Array, Array]]:
        """Roots of factors that were asked for, by their number."""
        return {}

    def roots(self, k: int) -> tuple[Array, Array]:
        """A root of factor `k` and its pseudoinverse (see `roots`). They are computed once."""
        if k not in self._roots:
            self._roots[k] = roots(self.factors[k].matrix)
        return self._roots[k]

    def like(self, x: Array, dtype: Any = None) -> Metric:
        """The metric as arrays of the library and on the device of `x`."""
        from tnc.backends import move, of

        xp, home = array_namespace(x), of(x)
        moved = [factor._replace(matrix=move(factor.matrix, home)) for factor in self.factors]
        return self._changed([f._replace(matrix=xp.astype(f.matrix, dtype or x.dtype, copy=False)) for f in moved])

    def member(self, k: int) -> Metric:
        """The metric for member `k` along the first axis of the weight, as a metric of a weight without this axis."""
        factors = []
        for axes, matrix, along in self.factors:
            if 0 in axes:
                continue
            inside = along[:1] == (0,)
            axes, along = tuple(a - 1 for a in axes), tuple(a - 1 for a in along if a)
            factors.append(Factor(axes, matrix[k, ...] if inside else matrix, along))
        return Metric(tuple(factors))

    def moved(self, places: Mapping[int, int]) -> Metric:
        """A metric of a weight some of whose axes became one, without what it says about these.

        Parameters
        ----------
        places : mapping of int to int
            New places of the axes that are as they were.
        """
        factors = []
        for axes, matrix, along in self.factors:
            if all(axis in places for axis in axes):
                gone = tuple(k for k, axis in enumerate(along) if axis not in places)
                matrix = array_namespace(matrix).mean(matrix, axis=gone) if gone else matrix
                kept = tuple(places[axis] for axis in along if axis in places)
                factors.append(Factor(tuple(places[axis] for axis in axes), matrix, kept))
        return Metric(tuple(factors))

    def operands(self, network: Network) -> tuple[list[Indices], list[Shape], frozenset[str]]:
        """The metric as operands of a contraction with two copies of a network.

        Returns
        -------
        names : list of tuple of str
            Indices of each factor. The second copy of the network has a prime at the names of doubled indices.
        shapes : list of tuple of int
            Shape of each factor with these indices, padded where the network overshoots an axis.
        doubled : frozenset of str
            Outer indices that differ in the two copies.
        """
        names: list[Indices] = []
        shapes: list[Shape] = []
        doubled: set[str] = set()
        for factor in self.factors:
            own = tuple(chain.from_iterable(network.axes[axis] for axis in factor.axes))
            along = tuple(chain.from_iterable(network.axes[axis] for axis in factor.along))
            if factor.diagonal:
                names.append((*along, *own))
            else:
                doubled |= set(own)
                names.append((*along, *own, *(f"{i}'" for i in own)))
            shapes.append(tuple(network.sizes[i.rstrip("'")] for i in names[-1]))
        return names, shapes, frozenset(doubled)

    def arrays(self, network: Network, shape: Shape) -> list[Array]:
        """The matrices of the factors in the shapes that `operands` states, for a weight of this shape."""
        whole = network.shape
        result = []
        for factor, goal in zip(self.factors, self.operands(network)[1], strict=True):
            places = [*factor.along, *factor.axes, *(() if factor.diagonal else factor.axes)]
            xp = array_namespace(factor.matrix)
            matrix = xp.reshape(factor.matrix, tuple(shape[axis] for axis in places))
            result.append(xp.reshape(pad(matrix, tuple(whole[axis] for axis in places), xp), goal))
        return result


def metric_of(metric: Any, shape: Shape) -> Metric:
    """A metric from what a fit is given: a `Metric`, or a matrix over the columns and the kernel of a weight.

    Raises
    ------
    WeightError
        It is neither, or not one for a weight of this shape.
    """
    if not isinstance(metric, Metric):
        if not hasattr(metric, "shape"):
            raise WeightError(f"metric={metric!r}: give the second moment of the inputs, or a tnc.fit.Metric")
        role = roles(shape)
        metric = Metric((Factor((role.columns, *role.kernel), metric),))
    checked: Metric = metric
    checked.check(shape)
    return checked


def _normalized(factor: Factor) -> Factor:
    xp, matrix = array_namespace(factor.matrix), factor.matrix
    parts = matrix if factor.diagonal else xp.linalg.diagonal(matrix)
    mean = float(xp.mean(xp.astype(parts, xp.float64)))
    if not mean > 0.0:
        size = matrix.shape[-1]
        one = xp.ones((size,), dtype=matrix.dtype, device=device(matrix))
        eye = one if factor.diagonal else xp.eye(size, dtype=matrix.dtype, device=device(matrix))
        return factor._replace(matrix=xp.broadcast_to(eye, tuple(matrix.shape)))
    return factor if abs(mean - 1.0) < 1e-9 else factor._replace(matrix=matrix / mean)


def roots(matrix: Array) -> tuple[Array, Array]:
    """A root ``R`` of a positive semidefinite matrix ``R R^T``, and its pseudoinverse, in float64.

    The root of a large matrix that is far from singular is triangular, which takes a quarter of the time. Other roots
    are symmetric. Eigenvalues below 1e-12 of the largest one count as zero, so that singular matrices need no care.

    Parameters
    ----------
    matrix : array (n, n) or (n,)
        A matrix, or the diagonal of one.
    """
    xp = array_namespace(matrix)
    matrix = xp.astype(matrix, xp.float64)
    if matrix.ndim == 2 and matrix.shape[0] >= _LARGE and (made := _triangular(matrix)) is not None:
        return made
    values, vectors = (matrix, None) if matrix.ndim == 1 else xp.linalg.eigh(matrix)
    used = values > _RANK * float(xp.max(xp.abs(values)))
    safe = xp.where(used, values, xp.ones_like(values))
    zero = xp.zeros_like(values)
    root, inverse = xp.where(used, safe**0.5, zero), xp.where(used, safe**-0.5, zero)
    if vectors is None:
        return root, inverse
    turned = xp.matrix_transpose(vectors)
    return xp.matmul(vectors * root, turned), xp.matmul(vectors * inverse, turned)


def _triangular(matrix: Array) -> tuple[Array, Array] | None:
    """The triangular root of a matrix and its inverse; None if the matrix is singular, or nearly so."""
    xp = array_namespace(matrix)
    try:
        root = xp.linalg.cholesky(matrix)
    except (ValueError, RuntimeError):  # numpy's and torch's way to say that it is singular; cupy returns NaN
        return None
    pivots = xp.linalg.diagonal(root) ** 2
    if not float(xp.min(pivots)) > _REGULAR * float(xp.max(pivots)):
        return None
    return root, xp.linalg.inv(root)


def marginals(matrix: Array, sizes: Sequence[int]) -> list[Array]:
    """Matrices, one for each size, whose Kronecker product is near `matrix`: its partial traces.

    The trace of the product is that of `matrix`.

    Parameters
    ----------
    matrix : array (n, n)
        Positive semidefinite, not zero.
    sizes : sequence of int
        Sizes of the parts; their product is `n`.
    """
    xp, n = array_namespace(matrix), len(sizes)
    tensor, trace, parts = xp.reshape(matrix, (*sizes, *sizes)), float(xp.linalg.trace(matrix)), []
    for k, size in enumerate(sizes):
        others = [j for j in range(n) if j != k]
        order = (k, n + k, *others, *(n + j for j in others))
        rest = prod(sizes) // size
        blocks = xp.reshape(xp.permute_dims(tensor, order), (size, size, rest, rest))
        part = xp.sum(xp.linalg.diagonal(blocks), axis=-1)
        parts.append(part / trace if k else part)
    return parts
