"""The interface of a plugin, `Decomposition`, and the value it produces, `Factorization`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from tnc import contract
from tnc.errors import WeightError
from tnc.fit import als, balance, refine, tree_svd
from tnc.linalg import relative_error
from tnc.network import Network
from tnc.typing import Array, Cores, Rank, Shape

__all__ = ["Decomposition", "Factorization"]


class Decomposition(ABC):
    """A way to write a weight as a tensor network. One method is abstract, all else is derived.

    Subclasses are frozen dataclasses; their fields are hyperparameters and become options of the command
    line. They hash: lists given as values become tuples before a subclass's own ``__post_init__`` sees them.
    Subclasses see shapes and arrays of any library, never torch, a device, a layer, a ratio or a tolerance.
    """

    sweeps: ClassVar[int] = 2
    """Two-site sweeps after the hierarchical SVD, where the network is a tree."""

    def __init_subclass__(cls) -> None:
        checks: Any = getattr(cls, "__post_init__", lambda self, *values: None)

        def tupled(self: Decomposition, *values: Any) -> None:
            for name in [item.name for item in fields(self) if item.init]:  # type: ignore[arg-type]
                object.__setattr__(self, name, _tuples(getattr(self, name)))
            checks(self, *values)

        cls.__post_init__ = tupled  # type: ignore[attr-defined]

    @abstractmethod
    def network(self, shape: Shape, rank: Rank) -> Network:
        """The topology for a weight of the given shape.

        Parameters
        ----------
        shape : tuple of int
            ``(out, in)``, ``(out, in, *kernel)`` or ``(stack, out, in)``; see `tnc.modes.roles`.
        rank : int or sequence of int
            One rank for all bonds, or one per bond. Not clipped: see `Network.clipped`.

        Raises
        ------
        RankError, WeightError
            The rank or the shape is not possible.
        """

    @property
    def step(self) -> int:
        """The smallest rank, of which every other is a multiple: 1 unless a ratio must divide it."""
        return 1

    def fit(self, x: Array, network: Network, *, seed: int = 0, metric: Array | None = None) -> list[Array]:
        """Cores of `network` that approximate `x`, on its library and device, in its dtype.

        Trees are fitted by hierarchical SVD and two-site sweeps, everything else by alternating least
        squares. Plugins override this with a closed form. Several threads may fit at a time.

        Parameters
        ----------
        x : array
            The weight, float32 or float64.
        seed : int
            Seed of the random starts.
        metric : array (columns, columns), optional
            Second moment of the layer's inputs; plugins that minimize the output's error take it.

        Raises
        ------
        WeightError
            A metric was given and this decomposition has no fit for it.
        """
        if metric is not None:
            raise WeightError(f"{self} has no fit in an input metric; leave metric out")
        if not network.is_tree:
            return als(x, network, seed=seed)
        cores, root = tree_svd(x, network, seed=seed)
        return balance(refine(x, network, cores, root, sweeps=self.sweeps))

    def __str__(self) -> str:
        """Name and the fields that differ from their defaults, as the command line writes them."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}  # type: ignore[arg-type]
        shown = ", ".join(f"{k}={v!r}" for k, v in given.items() if k not in defaults or defaults[k] != v)
        return type(self).__name__.lower() + (f"({shown})" if shown else "")


def _tuples(value: Any) -> Any:
    """Lists, at any depth, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, eq=False)
class Factorization:
    """A weight as structure and numbers: a network, its cores, and the weight's true shape.

    Parameters
    ----------
    network : Network
    cores : sequence of array
        Arrays of `network.core_shapes`.
    shape : tuple of int
        Shape of the weight; the network's may overshoot it.

    Raises
    ------
    WeightError
        A core does not have the shape the network states, or the weight does not fit into the network.
    """

    network: Network
    cores: Cores
    shape: Shape

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
        """``x @ W.T`` from the cores; ``W`` is the weight as a matrix (first axis, all others)."""
        return contract.apply(self.network, self.cores, x, self.shape)

    def error(self, weight: Array) -> float:
        """Relative Frobenius error against `weight`."""
        return relative_error(weight, self.dense())

    def map(self, f: Callable[[Array], Array]) -> Factorization:
        """The same network with `f` applied to every core: a move, a cast."""
        return Factorization(self.network, [f(core) for core in self.cores], self.shape)

    def __repr__(self) -> str:
        return f"Factorization({self.network.pattern!r}, shape={self.shape}, {self.n_params:,} parameters)"
