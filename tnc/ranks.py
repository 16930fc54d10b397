"""Rank policies: from a promise about size or error to the ranks that keep it.

On a tree of bonds the singular values at every bond say what each rank costs in error; a Lagrange multiplier
then trades error against parameters over all bonds, and over all weights of a budget, at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, prod, sqrt
from numbers import Integral, Real
from typing import ClassVar

from tnc.allocate import Spectra, allocate, fill, free_bonds, smallest, uniform
from tnc.decomposition import Decomposition, Factorization
from tnc.errors import PromiseError, RankError
from tnc.linalg import working
from tnc.network import Network
from tnc.typing import Array, Rank, Shape

__all__ = ["Budget", "Fixed", "RankPolicy", "Ratio", "Tolerance", "policy"]


class RankPolicy(ABC):
    """Chooses the network of a weight: topology from the decomposition, ranks from the promise."""

    shared: ClassVar[bool] = False
    """Whether `assign` needs all weights of a rule at once."""

    @abstractmethod
    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        """The network whose ranks keep the promise for this weight.

        Raises
        ------
        PromiseError
            No rank keeps it; the weight should stay dense.
        """

    def assign(self, weights: Mapping[str, Array], decomposition: Decomposition) -> dict[str, Network | PromiseError]:
        """A network for every weight, or the reason why one stays dense; `Budget` shares one allowance."""
        return {name: _or_reason(self, weight, decomposition) for name, weight in weights.items()}

    def accepts(self, error: float) -> bool:
        """Whether a measured relative error keeps the promise."""
        return True

    def stricter(self, error: float) -> RankPolicy:
        """What to ask for instead where a fit that keeps this promise ends at `error`, above it, once rounded."""
        return self

    def nominal(self, shape: Shape, decomposition: Decomposition, network: Network) -> int:
        """Parameters at the ranks as asked, before clipping."""
        return network.n_params


def _or_reason(policy: RankPolicy, weight: Array, decomposition: Decomposition) -> Network | PromiseError:
    try:
        return policy.choose(weight, decomposition)
    except PromiseError as reason:
        return reason


@dataclass(frozen=True)
class Fixed(RankPolicy):
    """The stated rank, one for all bonds or one per bond; clipped to what a bond can use."""

    rank: Rank

    def __post_init__(self) -> None:
        ranks = self.rank if isinstance(self.rank, Sequence) else [self.rank]
        if not ranks or any(isinstance(r, bool) or not isinstance(r, Integral) or r < 1 for r in ranks):
            raise RankError(f"rank {self.rank!r}: a whole number of at least 1 is needed, or one per bond")
        if isinstance(self.rank, Sequence):
            object.__setattr__(self, "rank", tuple(self.rank))

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        return decomposition.network(tuple(weight.shape), self.rank).clipped()

    def nominal(self, shape: Shape, decomposition: Decomposition, network: Network) -> int:
        return decomposition.network(shape, self.rank).n_params

    def __str__(self) -> str:
        return str(self.rank)


@dataclass(frozen=True)
class Ratio(RankPolicy):
    """At most this fraction of the weight's parameters is kept.

    Raises
    ------
    RankError
        The ratio is not in (0, 1].
    """

    ratio: float

    def __post_init__(self) -> None:
        _fraction(type(self).__name__, self.ratio)

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        shape = tuple(weight.shape)
        found, free = self.even(shape, decomposition), free_bonds(decomposition, shape)
        if free and found.is_tree and len(free) > 1:
            least = decomposition.network(shape, decomposition.step).clipped()
            spectra, allowance = Spectra.of(working(weight), least, free), self._allowance(shape)
            options = allocate([spectra], allowance)[0], fill(found, free, allowance, spectra)
            found = min(options, key=spectra.missed)
        if found.n_params >= prod(shape):
            raise PromiseError(f"{self} has room for the dense weight")
        return found

    def even(self, shape: Shape, decomposition: Decomposition) -> Network:
        """The network of the ratio where nothing is known of the weight: ranks as equal as the allowance permits."""
        allowance = self._allowance(shape)
        least = decomposition.network(shape, decomposition.step).clipped()
        if least.n_params > allowance:
            raise PromiseError(
                f"rank {decomposition.step} of {decomposition} already keeps {least.n_params:,} of {prod(shape):,} "
                f"parameters, more than {self}"
            )
        free = free_bonds(decomposition, shape)
        even = uniform(decomposition, shape, allowance)
        return even if free is None or (even.is_tree and len(free) > 1) else fill(even, free, allowance)

    def _allowance(self, shape: Shape) -> int:
        return _share(self.ratio, prod(shape))

    def __str__(self) -> str:
        return f"ratio:{self.ratio}"


@dataclass(frozen=True)
class Tolerance(RankPolicy):
    """The relative Frobenius error never exceeds this; the fewest parameters that keep it.

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

    def stricter(self, error: float) -> Tolerance:
        return Tolerance(0.999 * self.tolerance**2 / error)

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        shape, x = tuple(weight.shape), working(weight)
        free = free_bonds(decomposition, shape)
        least = decomposition.network(shape, decomposition.step).clipped()
        spectra = Spectra.of(x, least, free) if free and least.is_tree else None
        best = self._bound(x, decomposition, spectra) if spectra else None
        limit = best.n_params if best else prod(shape)

        def keeps(network: Network) -> bool:  # whatever is no gain counts as kept: it need not be fitted
            if network.n_params >= limit or (spectra and spectra.least(network) > self.tolerance**2):
                return network.n_params >= limit
            return self.accepts(_error(x, decomposition, network))

        even = smallest(decomposition, shape, keeps)
        found = even if even and even.n_params < limit else best
        if found is None:
            raise PromiseError(f"{decomposition} needs as many parameters as the dense weight to reach {self}")
        return found

    def _bound(self, x: Array, decomposition: Decomposition, spectra: Spectra) -> Network | None:
        """Ranks whose discarded energies sum to an aim: the strictest that may be needed, then looser ones."""
        low, best = self.tolerance, None
        high = low * sqrt(len(spectra.energies)) * 1.001  # the sum may be that far above the squared error
        aim = low
        for _ in range(6):
            network, guess = allocate([spectra], None, missed=aim**2)[0], 0.0
            if network.n_params >= (best.n_params if best else prod(x.shape)):
                low = aim  # no gain: nothing to fit
            else:
                error = _error(x, decomposition, network)
                low, high, best = (aim, high, network) if self.accepts(error) else (low, aim, best)
                guess = 0.999 * aim * self.tolerance / error if error else high
            aim = guess if low < guess < high else sqrt(low * high)
        return best

    def __str__(self) -> str:
        return f"tolerance:{self.tolerance}"


@dataclass(frozen=True)
class Budget(RankPolicy):
    """At most this fraction of the parameters of *all* matched weights, shared where it helps most.

    The sum of the squared relative errors of the weights is minimized; networks that are no trees get the same
    ratio each.

    Raises
    ------
    RankError
        The budget is not in (0, 1].
    """

    ratio: float
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _fraction(type(self).__name__, self.ratio)

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        return Ratio(self.ratio).choose(weight, decomposition)

    def assign(self, weights: Mapping[str, Array], decomposition: Decomposition) -> dict[str, Network | PromiseError]:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        frees = {name: free_bonds(decomposition, shape) for name, shape in shapes.items()}
        least = {name: decomposition.network(shape, decomposition.step).clipped() for name, shape in shapes.items()}
        trees = [
            name
            for name in weights
            if frees[name] and least[name].is_tree and least[name].n_params < prod(shapes[name])
        ]
        alone = {name: weights[name] for name in weights if name not in trees}
        result = Ratio(self.ratio).assign(alone, decomposition)
        allowance = _share(self.ratio, sum(map(prod, shapes.values())))
        for name, chosen in result.items():
            allowance -= chosen.n_params if isinstance(chosen, Network) else prod(shapes[name])
        if trees and sum(least[name].n_params for name in trees) > allowance:
            raise RankError(f"{self}: rank 1 of {decomposition} already keeps more than the allowance for {trees}")
        spectra = [Spectra.of(working(weights[name]), least[name], frees[name] or ()) for name in trees]
        for name, network in zip(trees, allocate(spectra, allowance), strict=True):
            full = network.n_params >= prod(shapes[name])
            result[name] = PromiseError(f"{self} has room for the dense weight") if full else network
        return {name: result[name] for name in weights}

    def __str__(self) -> str:
        return f"budget:{self.ratio}"


def _fraction(name: str, ratio: float) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio <= 1:
        raise RankError(f"{name}({ratio!r}): a fraction of the dense parameters in (0, 1] is needed, such as 0.1")


def _share(ratio: float, size: int) -> int:
    """Whole parameters in a ratio, in decimals as it is written: 29 of 100 are 0.29, though not in binary."""
    return int(Fraction(str(float(ratio))) * size)


def _error(x: Array, decomposition: Decomposition, network: Network) -> float:
    return Factorization(network, decomposition.fit(x, network), tuple(x.shape)).error(x)


def policy(rank: Rank | float | str | RankPolicy) -> RankPolicy:
    """A policy from its short form: whole numbers are ranks, other numbers ratios.

    ``8``, ``(4, 8)``, ``0.1``, ``"4,8"``, ``"ratio:0.1"``, ``"tolerance:0.02"``, ``"budget:0.1"``.

    Raises
    ------
    RankError
        The short form is not one of these.
    """
    if isinstance(rank, RankPolicy):
        return rank
    if isinstance(rank, str):
        return _parse(rank)
    if isinstance(rank, Real) and not isinstance(rank, Integral):
        return Ratio(float(rank))
    return Fixed(rank)  # type: ignore[arg-type]


def _parse(text: str) -> RankPolicy:
    kinds: dict[str, Callable[[float], RankPolicy]] = {"ratio": Ratio, "tolerance": Tolerance, "budget": Budget}
    kind, colon, value = text.strip().rpartition(":")
    try:
        if colon and kind != "rank":
            return kinds[kind](float(value))
        if "," in value:
            return Fixed(tuple(int(r) for r in value.strip("()[] ").split(",") if r.strip()))
        return Fixed(int(value)) if value.lstrip("+-").isdigit() else Ratio(float(value))
    except (KeyError, ValueError) as error:
        if isinstance(error, RankError):
            raise
        raise RankError(
            f"rank {text!r} is not understood: write 8, 4,8,4, 0.1, ratio:0.1, tolerance:0.02 or budget:0.1"
        ) from None
