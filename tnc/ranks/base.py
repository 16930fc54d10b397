"""`RankPolicy`, the interface of rank policies: a promise about size or error, and a network that keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import nan
from numbers import Real
from typing import ClassVar

from tnc.decomposition import Decomposition, InRoles
from tnc.errors import PromiseError, RankError, TncError, WeightError
from tnc.network import Network
from tnc.ranks.curves import Point, Subject, predicted
from tnc.typing import Array, Shape

__all__ = ["Each", "RankPolicy", "check_fraction", "each_of", "share"]

Each = Decomposition | Mapping[str, Decomposition]
"""One decomposition for all weights, or one for each name."""


class RankPolicy(ABC):
    """Chooses the network of a weight. The decomposition gives its topology, and the promise gives its ranks."""

    shared: ClassVar[bool] = False
    """Whether the weights of a rule share one allowance, so that `assign` needs all of them at once."""

    @abstractmethod
    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        """The network whose ranks keep the promise for this weight.

        Raises
        ------
        PromiseError
            No rank keeps it; the weight should stay dense.
        """

    def fresh(self, shape: Shape, decomposition: Decomposition) -> Network:
        """The network of a new weight, which has a shape but no values. Its ranks are not clipped.

        Parameters
        ----------
        shape : tuple of int
            Shape of the weight.
        decomposition : Decomposition

        Raises
        ------
        PromiseError
            No rank keeps the promise; the weight should stay dense.
        RankError
            The promise depends on the values of a weight.
        """
        raise RankError(f"{self} needs a weight to approximate; a new layer takes a rank or a ratio")

    def assign(self, weights: Mapping[str, Array], decomposition: Each) -> dict[str, Network | PromiseError]:
        """A network for every weight, or the reason why it stays dense.

        Parameters
        ----------
        weights : mapping of str to array
        decomposition : Decomposition, or mapping of str to Decomposition
            One for all weights, or one for each name.

        Returns
        -------
        dict of str to Network or PromiseError
        """
        each = each_of(decomposition, weights)
        return {name: _choose_or_reason(self, weight, each[name]) for name, weight in weights.items()}

    def reassign(
        self, weights: Mapping[str, Array], decomposition: Each, dense: Mapping[str, PromiseError]
    ) -> dict[str, Network | PromiseError]:
        """As `assign`, after some of the weights were found to stay dense.

        Parameters
        ----------
        weights : mapping of str to array
        decomposition : Decomposition, or mapping of str to Decomposition
        dense : mapping of str to PromiseError
            The weights that stay dense, with the reasons.

        Returns
        -------
        dict of str to Network or PromiseError
        """
        chosen = self.assign({name: x for name, x in weights.items() if name not in dense}, decomposition)
        return {name: dense.get(name) or chosen[name] for name in weights}

    def plan(
        self, subjects: Mapping[str, Subject], dense: Mapping[str, PromiseError], *, outside: int = 0
    ) -> dict[str, Point | PromiseError]:
        """A decomposition and a network for every weight, or the reason why it stays dense.

        By default `assign` chooses the networks of every candidate, from weights times the root of their metric. Thus
        its errors are errors in the metric. Among several candidates, `preference` decides.

        Parameters
        ----------
        subjects : mapping of str to Subject
        dense : mapping of str to PromiseError
            Weights that were found to stay dense.
        outside : int
            Parameters of all other weights of the model, for policies about the whole of it.

        Returns
        -------
        dict of str to Point or PromiseError

        Raises
        ------
        RankError, WeightError
            No candidate has a network for a weight.
        """
        found: dict[str, Point | PromiseError] = {}
        errors: list[TncError] = []
        most = max((len(subject.candidates) for subject in subjects.values()), default=0)
        for k in range(most):
            each = {name: s.candidates[k] for name, s in subjects.items() if k < len(s.candidates)}
            try:
                seen = {name: subjects[name].seen(decomposition) for name, decomposition in each.items()}
                chosen = self.reassign(seen, each, dense) if dense else self.assign(seen, each)
            except (RankError, WeightError) as error:  # another candidate may have a network
                errors.append(error)
                continue
            for name, decomposition in each.items():
                self._consider(found, name, subjects[name], decomposition, chosen[name])
        if errors and len(found) < len(subjects):
            raise errors[0]
        return found

    def _consider(
        self,
        found: dict[str, Point | PromiseError],
        name: str,
        subject: Subject,
        decomposition: InRoles,
        network: Network | PromiseError,
    ) -> None:
        """Keep the better one of what was found for a weight and another network for it."""
        if isinstance(network, PromiseError):
            found.setdefault(name, network)
            return
        alone = len(subject.candidates) == 1
        point = Point(decomposition, network, nan if alone else predicted(subject, decomposition, network))
        before = found.get(name)
        if not isinstance(before, Point):
            found[name] = point
            return
        better = point if self.preference(point) < self.preference(before) else before
        found[name] = better._replace(rivals=(*(before.rivals or (before.rival,)), point.rival))

    def preference(self, point: Point) -> float:
        """What decides between several decompositions: the smallest value wins. By default that is the error."""
        return point.error

    def accepts(self, error: float) -> bool:
        """Whether a measured relative error keeps the promise."""
        return True

    def stricter(self, error: float) -> RankPolicy:
        """The policy to try next, where rounding the cores raised the error to `error`, above the promise."""
        return self

    def nominal(self, shape: Shape, decomposition: Decomposition, network: Network) -> int:
        """Number of parameters with the requested ranks, before clipping.

        Parameters
        ----------
        shape : tuple of int
            Shape of the weight.
        decomposition : Decomposition
        network : Network
            The network that was chosen.
        """
        return network.n_params


def each_of(decomposition: Each, names: Iterable[str]) -> Mapping[str, Decomposition]:
    """A decomposition for each name."""
    return dict.fromkeys(names, decomposition) if isinstance(decomposition, Decomposition) else decomposition


def _choose_or_reason(policy: RankPolicy, weight: Array, decomposition: Decomposition) -> Network | PromiseError:
    try:
        return policy.choose(weight, decomposition)
    except PromiseError as reason:
        return reason


def check_fraction(name: str, ratio: float) -> None:
    """Raise a `RankError` unless `ratio` is a number in (0, 1]. `name` is the name of the policy."""
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio <= 1:
        raise RankError(f"{name}({ratio!r}): a fraction of the dense parameters in (0, 1] is needed, such as 0.1")


def share(ratio: float, size: int) -> int:
    """The number of parameters that a ratio allows, rounded down.

    The ratio is taken as the decimal number that is written: 0.29 of 100 is 29, although in binary it is a little less.
    """
    return int(Fraction(str(float(ratio))) * size)
