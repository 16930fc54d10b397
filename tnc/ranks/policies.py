"""Rank policies for single weights: a fixed rank, a ratio of the parameters, or a tolerance of the error.

In a network that is a tree, the singular values at each bond tell how the error depends on the rank. A Lagrange
multiplier then balances error against parameters over all bonds at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from numbers import Integral, Real

from tnc.decomposition import Decomposition, Factorization
from tnc.errors import PromiseError, RankError
from tnc.fit.linalg import working
from tnc.network import Network
from tnc.ranks.allocation import Spectra, allocate, even_network, fill, free_bonds, smallest
from tnc.ranks.base import RankPolicy, check_fraction, share
from tnc.ranks.curves import Point
from tnc.typing import Array, Rank, Shape

__all__ = ["Fixed", "Ratio", "Tolerance"]


@dataclass(frozen=True)
class Fixed(RankPolicy):
    """A fixed rank: one for all bonds, or one per bond. It is clipped to what a bond can use.

    Parameters
    ----------
    rank : int or sequence of int

    Raises
    ------
    RankError
        The rank is not a whole number of at least 1, or a sequence of them.
    """

    rank: Rank

    def __post_init__(self) -> None:
        ranks = self.rank if isinstance(self.rank, Sequence) else [self.rank]
        if not ranks or any(isinstance(r, bool) or not isinstance(r, Integral) or r < 1 for r in ranks):
            raise RankError(f"rank {self.rank!r}: a whole number of at least 1 is needed, or one per bond")
        if isinstance(self.rank, Sequence):
            object.__setattr__(self, "rank", tuple(self.rank))

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        return self.fresh(tuple(weight.shape), decomposition).clipped()

    def fresh(self, shape: Shape, decomposition: Decomposition) -> Network:
        return decomposition.network(shape, self.rank)

    def nominal(self, shape: Shape, decomposition: Decomposition, network: Network) -> int:
        return decomposition.network(shape, self.rank).n_params

    def __str__(self) -> str:
        return str(self.rank)


@dataclass(frozen=True)
class Ratio(RankPolicy):
    """At most this fraction of the parameters of the weight is kept.

    Parameters
    ----------
    ratio : float
        In (0, 1].

    Raises
    ------
    RankError
        The ratio is not in (0, 1].
    """

    ratio: float

    def __post_init__(self) -> None:
        check_fraction(type(self).__name__, self.ratio)

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        shape = tuple(weight.shape)
        network, free = self.fresh(shape, decomposition), free_bonds(decomposition, shape)
        if free and network.is_tree and len(free) > 1:
            least = decomposition.network(shape, decomposition.step).clipped()
            spectra, allowance = Spectra.of(working(weight), least, free), self._allowance(shape)
            options = allocate(spectra, allowance), fill(network, free, allowance, spectra)
            network = min(options, key=spectra.missed)
        if network.n_params >= prod(shape):
            raise PromiseError(f"{self} has room for the dense weight")
        return network

    def fresh(self, shape: Shape, decomposition: Decomposition) -> Network:
        """The network with ranks that are as equal as the ratio allows."""
        allowance = self._allowance(shape)
        least = decomposition.network(shape, decomposition.step).clipped()
        if least.n_params > allowance:
            raise PromiseError(
                f"rank {decomposition.step} of {decomposition} already keeps {least.n_params:,} of {prod(shape):,} "
                f"parameters, more than {self}"
            )
        return even_network(decomposition, shape, allowance)

    def _allowance(self, shape: Shape) -> int:
        return share(self.ratio, prod(shape))

    def __str__(self) -> str:
        return f"ratio:{self.ratio}"


@dataclass(frozen=True)
class Tolerance(RankPolicy):
    """At most this relative Frobenius error, with as few parameters as possible.

    Parameters
    ----------
    tolerance : float
        Above 0.

    Raises
    ------
    RankError
        The tolerance is not a positive finite number.
    """

    tolerance: float

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance, Real) or not isfinite(self.tolerance) or self.tolerance <= 0:
            raise RankError(f"Tolerance({self.tolerance!r}): a relative error above 0 is needed, such as 0.02")

    def accepts(self, error: float) -> bool:
        return error <= self.tolerance

    def preference(self, point: Point) -> float:
        return point.network.n_params

    def stricter(self, error: float) -> Tolerance:
        return Tolerance(0.999 * self.tolerance**2 / error)

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        shape, x = tuple(weight.shape), working(weight)
        free = free_bonds(decomposition, shape)
        least = decomposition.network(shape, decomposition.step).clipped()
        spectra = Spectra.of(x, least, free) if free and least.is_tree else None
        best = self._from_spectra(x, decomposition, spectra) if spectra else None
        limit = best.n_params if best else prod(shape)

        def keeps(network: Network) -> bool:
            # A network that is too large counts as one that keeps the promise, so that it is not fitted.
            if network.n_params >= limit or (spectra and spectra.least(network) > self.tolerance**2):
                return network.n_params >= limit
            return self.accepts(_error(x, decomposition, network))

        even = smallest(decomposition, shape, keeps)
        chosen = even if even and even.n_params < limit else best
        if chosen is None:
            raise PromiseError(f"{decomposition} needs as many parameters as the dense weight to reach {self}")
        return chosen

    def _from_spectra(self, x: Array, decomposition: Decomposition, spectra: Spectra) -> Network | None:
        """The smallest network found with ranks from the singular values at the bonds.

        The sum of the squared singular values that are cut off is a bound of the squared error. The search starts with
        the tolerance as the bound, which is the strictest, and tries larger ones.
        """
        low, best = self.tolerance, None
        # The sum over all bonds can be as many times the squared error as there are bonds.
        high = low * sqrt(len(spectra.energies)) * 1.001
        aim = low
        for _ in range(6):
            network, guess = allocate(spectra, None, missed=aim**2), 0.0
            if network.n_params >= (best.n_params if best else prod(x.shape)):
                low = aim  # no smaller than the best one, so it is not fitted
            else:
                error = _error(x, decomposition, network)
                low, high, best = (aim, high, network) if self.accepts(error) else (low, aim, best)
                guess = 0.999 * aim * self.tolerance / error if error else high
            aim = guess if low < guess < high else sqrt(low * high)
        return best

    def __str__(self) -> str:
        return f"tolerance:{self.tolerance}"


def _error(x: Array, decomposition: Decomposition, network: Network) -> float:
    """Relative error of a fit."""
    return Factorization(network, decomposition.fit(x, network), tuple(x.shape)).error(x)
