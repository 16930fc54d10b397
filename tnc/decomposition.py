"""`Decomposition`, the interface of a plugin, and `Factorization`, the result of a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from tnc import contract
from tnc.errors import WeightError
from tnc.fit.alternating import als
from tnc.fit.calibrated import calibrated, whitened
from tnc.fit.linalg import norm, relative_error, wide
from tnc.fit.metric import Factor, Metric
from tnc.fit.quick import quick
from tnc.fit.starts import random_cores
from tnc.fit.trees import tree
from tnc.network import Network
from tnc.roles import AxisRoles
from tnc.typing import Array, Cores, Rank, Shape

__all__ = ["Decomposition", "Factorization", "InRoles"]


_Fit = Callable[[Array, Network, Metric | None], list[Array]]
"""Fits the cores of a network to the weight of a group."""


_START_SWEEPS = 40
"""Sweeps of alternating least squares before those in a metric."""


class Decomposition(ABC):
    """A way to write a weight as a tensor network. Only the method `network` is abstract.

    Subclasses are frozen dataclasses. Their fields are hyperparameters and become options of the command line. They
    are hashable: lists given as values become tuples before the ``__post_init__`` of a subclass runs. Subclasses get
    shapes, and arrays of any library. They do not know torch, devices, layers, ratios or tolerances.
    """

    sweeps: ClassVar[int] = 2
    """Number of two-site sweeps after the hierarchical SVD, for a network that is a tree."""

    def __init_subclass__(cls) -> None:
        checks: Any = getattr(cls, "__post_init__", lambda self, *values: None)

        def tupled(self: Decomposition, *values: Any) -> None:
            for name in [item.name for item in fields(self) if item.init]:  # type: ignore[arg-type]
                object.__setattr__(self, name, _tuples(getattr(self, name)))
            checks(self, *values)

        cls.__post_init__ = tupled  # type: ignore[attr-defined]

    @abstractmethod
    def network(self, shape: Shape, rank: Rank) -> Network:
        """The network for a weight of the given shape.

        Parameters
        ----------
        shape : tuple of int
            ``(out, in)``, ``(out, in, *kernel)`` or ``(stack, out, in)``. It can be a `tnc.roles.WeightShape`, which
            knows the roles of its axes. `tnc.roles.roles` and `tnc.modes.modes` read them.
        rank : int or sequence of int
            One rank for all bonds, or one per bond. Ranks are not clipped: see `Network.clipped`.

        Returns
        -------
        Network

        Raises
        ------
        RankError, WeightError
            The rank or the shape is not possible.
        """

    @property
    def candidates(self) -> tuple[Decomposition, ...]:
        """The decompositions to choose among for each weight: this one, unless it stands for several (`auto`)."""
        return (self,)

    @property
    def step(self) -> int:
        """The smallest rank, of which all ranks are multiples. It is 1 unless the format divides its ranks."""
        return 1

    def fit(self, x: Array, network: Network, *, seed: int = 0, metric: Metric | Array | None = None) -> list[Array]:
        """Cores of `network` that approximate `x`, on its library and device, in its dtype.

        Trees are fitted by hierarchical SVD and two-site sweeps, all other networks by alternating least squares.
        Plugins can override this, for example with a closed form. Several threads can call it at the same time.

        Parameters
        ----------
        x : array
            The weight, float32 or float64.
        network : Network
            A network of this decomposition for the shape of `x`.
        seed : int
            Seed of the random starts.
        metric : Metric or array, optional
            The norm in which the error is minimized: that of the layer's outputs, for instance. An array is the second
            moment of the inputs, over the columns and the kernel: (columns x kernel, columns x kernel). Without one,
            each entry of the weight counts the same. A plugin with a fit of its own leaves the metric to this method,
            ``super().fit(..., metric=metric)``, which improves its fit. A closed form in a metric can replace it.

        Returns
        -------
        list of array
            The cores, in the order of the network.

        Raises
        ------
        WeightError
            The metric is not one for a weight of this shape.
        """
        if metric is not None:
            return calibrated(x, network, metric, lambda x: self._start(x, network, seed))
        if not network.is_tree:
            return als(x, network, seed=seed)
        return tree(x, network, seed=seed, sweeps=self.sweeps)

    def _start(self, x: Array, network: Network, seed: int) -> list[Array]:
        """A fit without a metric, from which one in a metric starts. It needs no choice among many starts."""
        own = type(self).fit is not Decomposition.fit
        if own or network.is_tree or network.feed is not None:
            return self.fit(x, network, seed=seed)
        return als(x, network, seed=seed, starts=1, most=1, sweeps=_START_SWEEPS)

    def random(self, network: Network, shape: Shape, *, seed: int = 0) -> list[Array]:
        """Random cores to train a new layer from, as NumPy arrays. Their scale does not matter: they are scaled later.

        They are normally distributed. A plugin can override this where other cores train better.

        Parameters
        ----------
        network : Network
            A network of this decomposition.
        shape : tuple of int
            Shape of the weight.
        seed : int
        """
        return random_cores(np.empty(0), network, seed)

    def __str__(self) -> str:
        """The name, and the fields that differ from their defaults, as on the command line."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}  # type: ignore[arg-type]
        shown = ", ".join(f"{k}={v!r}" for k, v in given.items() if k not in defaults or defaults[k] != v)
        return type(self).__name__.lower() + (f"({shown})" if shown else "")


@dataclass(frozen=True)
class InRoles(Decomposition):
    """A decomposition of weights whose axes have stated roles, in any order.

    Parameters
    ----------
    decomposition : Decomposition
        It gets a `tnc.roles.WeightShape` in the order stack, rows, columns, kernel.
    roles : AxisRoles
        The roles of the axes as the weight is stored.
    """

    decomposition: Decomposition
    roles: AxisRoles

    @property
    def step(self) -> int:
        return self.decomposition.step

    def network(self, shape: Shape, rank: Rank) -> Network:
        """The network of the decomposition, with the axes in the order of the stored weight.

        Raises
        ------
        RankError, WeightError
            The rank or the shape is not possible, or the roles do not fit a weight of this shape.
        """
        network = self.roles.stored(self.decomposition.network(self.roles.seen(shape), rank), shape)
        if network is not None:
            return network
        roles = self.roles.together()
        merged = roles.stored(self.decomposition.network(roles.seen(shape), rank), shape)
        assert merged is not None  # always possible, because no axis is split any more
        return merged

    def known(self, network: Network, shape: Shape) -> AxisRoles:
        """The roles that the axes of a network have. Where an axis could not be split, it has one role."""
        return self.roles if self.roles.unstored(network, shape) is not None else self.roles.together()

    def fit(self, x: Array, network: Network, *, seed: int = 0, metric: Metric | Array | None = None) -> list[Array]:
        """As `Decomposition.fit`. Each group is fitted separately, and the cores of all groups are stacked.

        The axes of the weight that the metric names are in the order group, stack, rows, columns, kernel.
        """

        def fit(part: Array, own: Network, metric: Metric | None) -> list[Array]:
            if metric is None:
                return self.decomposition.fit(part, own, seed=seed)
            return self.decomposition.fit(part, own, seed=seed, metric=metric)

        return self._by_group(x, network, metric, fit)

    def random(self, network: Network, shape: Shape, *, seed: int = 0) -> list[Array]:
        """As `Decomposition.random`. Each group has cores of its own, and those of all groups are stacked."""
        roles, own = self._unstored(network, shape)
        if not roles.grouped:
            return self.decomposition.random(own, roles.seen(shape), seed=seed)
        groups = range(network.core_shapes[0][0])
        parts = [self.decomposition.random(own, roles.seen(shape), seed=seed + k) for k in groups]
        return [np.stack(cores) for cores in zip(*parts, strict=True)]

    def improved(self, x: Array, network: Network, metric: Metric | Array, cores: Cores) -> list[Array]:
        """Better cores in a metric, from those of a weight that was a little different (see `tnc.fit.calibrated`).

        Parameters
        ----------
        x : array
            The weight, as it is stored.
        network : Network
        metric : Metric or array
            As that of `fit`.
        cores : sequence of array
            The start.
        """
        grouped = self.known(network, tuple(x.shape)).grouped
        starts = iter([[core[k, ...] for core in cores] for k in range(cores[0].shape[0])] if grouped else [cores])

        def fit(part: Array, own: Network, each: Metric | None) -> list[Array]:
            assert each is not None  # there is a metric for every group
            return calibrated(part, own, each, lambda y: self.decomposition.fit(y, own), start=next(starts))

        return self._by_group(x, network, metric, fit)

    def quick(self, x: Array, network: Network, metric: Metric | Array | None, *, seed: int = 0) -> list[Array]:
        """As `fit`, with one start and few sweeps (see `tnc.fit.quick`).

        Parameters
        ----------
        x : array
            The weight, as it is stored.
        network : Network
        metric : Metric or array, optional
            As that of `fit`.
        seed : int
        """
        return self._by_group(x, network, metric, lambda part, own, each: quick(part, own, each, seed=seed))

    def _by_group(self, x: Array, network: Network, metric: Metric | Array | None, fit: _Fit) -> list[Array]:
        """The cores of all groups, from those of each."""
        roles, own = self._unstored(network, tuple(x.shape))
        seen = roles.permuted(x)
        pairs = zip(_groups(seen, roles), self._metrics(seen, roles, metric), strict=True)
        fits = [fit(part, own, each) for part, each in pairs]
        return [array_namespace(x).stack(cores) for cores in zip(*fits, strict=True)] if roles.grouped else fits[0]

    def whitened(self, x: Array, metric: Metric | Array) -> Array:
        """The weight times the square root of a metric (see `tnc.fit.whitened`), in the shape in which it is stored."""
        shape = tuple(x.shape)
        roles, own = self._unstored(self.network(shape, self.step), shape)
        seen = roles.permuted(x)
        pairs = zip(_groups(seen, roles), self._metrics(seen, roles, metric), strict=True)
        parts = [x if each is None else whitened(x, own, each) for x, each in pairs]
        return roles.unpermuted(array_namespace(x).stack(parts) if roles.grouped else parts[0], shape)

    def error(self, x: Array, y: Array, metric: Metric | Array) -> float:
        """Norm of ``x - y`` in a metric, relative to that of `x`.

        Parameters
        ----------
        x, y : array
            Weights, as they are stored.
        metric : Metric or array
            As that of `fit`.
        """
        x, y = (self.roles.permuted(wide(each)) for each in (x, y))
        metric = _metric(metric, self.roles)
        metric.check(tuple(x.shape))
        return metric.like(x).error(x, y)

    def _unstored(self, network: Network, shape: Shape) -> tuple[AxisRoles, Network]:
        """The roles that the axes of a network have, and the plugin's network of one group."""
        roles = self.known(network, shape)
        own = roles.unstored(network, shape)
        assert own is not None  # `network` is one that `self.network` made
        return roles, own

    def _metrics(self, x: Array, roles: AxisRoles, metric: Metric | Array | None) -> list[Metric | None]:
        """The metric of each group, for a weight with its axes in the order of the roles."""
        count = x.shape[0] if roles.grouped else 1
        if metric is None:
            return [None] * count
        whole = _metric(metric, self.roles)
        if roles != self.roles:
            whole = whole.moved(self.roles.places(roles))
        whole.check(tuple(x.shape))
        return [whole.member(k) for k in range(count)] if roles.grouped else [whole]

    def __str__(self) -> str:
        return str(self.decomposition)


def _metric(metric: Metric | Array, roles: AxisRoles) -> Metric:
    """A metric of a weight with its axes in the order of the roles. A matrix is one over the columns and the kernel."""
    if isinstance(metric, Metric):
        return metric
    return Metric((Factor(tuple(range(roles.words.index("columns"), len(roles.words))), metric),))


def _groups(x: Array, roles: AxisRoles) -> list[Array]:
    """The weight of each group, for a weight with its axes in the order of the roles."""
    return [x[k, ...] for k in range(x.shape[0])] if roles.grouped else [x]


def _tuples(value: Any) -> Any:
    """The value with all lists, at any depth, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, eq=False)
class Factorization:
    """A factorized weight: a network, its cores, and the shape of the weight.

    Parameters
    ----------
    network : Network
    cores : sequence of array
        Of the shapes `network.core_shapes`.
    shape : tuple of int
        Shape of the weight. The shape of the network may be larger.
    roles : AxisRoles, optional
        The role of each axis of the weight, if it is known.

    Raises
    ------
    WeightError
        A core does not have the shape the network states, or the weight does not fit into the network.
    """

    network: Network
    cores: Cores
    shape: Shape
    roles: AxisRoles | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", tuple(self.cores))
        object.__setattr__(self, "shape", tuple(self.shape))
        shapes = tuple(tuple(core.shape) for core in self.cores)
        if shapes != self.network.core_shapes:
            raise WeightError(
                f"cores of shapes {shapes} do not fit {self.network.pattern!r}, which needs {self.network.core_shapes}"
            )
        if not self.network.holds(self.shape):
            raise WeightError(
                f"{self.network!r} rebuilds {self.network.shape}: it cannot hold a weight of shape {self.shape}"
            )

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return self.network.n_params

    def dense(self) -> Array:
        """Rebuild the weight."""
        return contract.dense(self.network, self.cores, self.shape)

    def apply(self, x: Array) -> Array:
        """``x @ W.T``, computed from the cores. ``W`` is the weight as a matrix (first axis, all others)."""
        return contract.apply(self.network, self.cores, x, self.shape)

    def error(self, weight: Array) -> float:
        """Relative Frobenius error against `weight`. The cores are always contracted in float64.

        This needs 8 bytes per entry for the rebuilt weight, and the time of one rebuild, which is short compared with a
        fit.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # the error is then infinite or NaN
            return relative_error(weight, self.map(wide).dense())

    def conditioning(self, weight: Array) -> float | None:
        """Norm of the terms of the network, divided by the norm of the weight. Far above 1 where terms cancel.

        Rounding the cores to precision ``u`` changes the weight by about ``u`` times this number, relative to its norm.
        None for a weight of zeros, and for a network with a feed (see `tnc.contract.terms`).
        """
        size, terms = norm(weight), contract.terms(self.network, self.cores)
        return terms / size if size and terms is not None else None

    def map(self, f: Callable[[Array], Array]) -> Factorization:
        """The same network with `f` applied to every core, for instance to move or cast it."""
        return replace(self, cores=tuple(f(core) for core in self.cores))

    def __repr__(self) -> str:
        return f"Factorization({self.network.pattern!r}, shape={self.shape}, {self.n_params:,} parameters)"
