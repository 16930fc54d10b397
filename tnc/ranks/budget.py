"""`Budget`: one allowance for several weights together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tnc.backends import of
from tnc.decomposition import Decomposition, InRoles
from tnc.errors import PromiseError, RankError, TncError, WeightError
from tnc.fit.linalg import working
from tnc.network import Network
from tnc.ranks.base import Each, RankPolicy, check_fraction, each_of, share
from tnc.ranks.curves import Point, Subject, curve
from tnc.ranks.knapsack import Option, cheapest
from tnc.ranks.measures import MEASURES, Measure
from tnc.ranks.policies import Ratio
from tnc.roles import guessed
from tnc.typing import Array, Shape

__all__ = ["Budget"]

_STEPS = 600
"""Networks of neighbouring sizes differ by this part of all weights at most, so that hardly anything is left unused."""


@dataclass(frozen=True)
class Budget(RankPolicy):
    """At most this fraction of the size of *all* matched weights together.

    The sum of the predicted rises of the loss is minimized. The rise of a weight is its squared relative error, in the
    metric of its inputs and times its importance where these are known. Each weight has a curve of errors over sizes,
    for every decomposition to choose among. A weight stays dense where its parameters are worth more than those of the
    others.

    Parameters
    ----------
    ratio : float
        In (0, 1].
    of : {"parameters", "bytes", "flops"}
        What is counted. ``"bytes"`` counts parameters by the size of their dtype. ``"flops"`` counts multiplications
        and additions for each sample.
    batch : int
        Input vectors that share one rebuilt weight, for ``of="flops"``.
    whole : bool
        Whether all weights of the model count, matched or not.

    Raises
    ------
    RankError
        An argument is out of range, or the smallest ranks of all weights need more. The message says how much.
    """

    ratio: float
    of: str = "parameters"
    batch: int = 1
    whole: bool = False
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction(type(self).__name__, self.ratio)
        if self.of not in MEASURES:
            raise RankError(f"Budget(of={self.of!r}): one of {', '.join(MEASURES)} is needed")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise RankError(f"Budget(batch={self.batch!r}): a whole number of at least 1 is needed")
        if self.whole and self.of == "flops":
            raise RankError("Budget(of='flops', whole=True): operations are counted for the matched weights only")

    def choose(self, weight: Array, decomposition: Decomposition) -> Network:
        return Ratio(self.ratio).choose(weight, decomposition)

    def fresh(self, shape: Shape, decomposition: Decomposition) -> Network:
        """As `Ratio`: new weights have no values that could show which of them needs more parameters."""
        return Ratio(self.ratio).fresh(shape, decomposition)

    def assign(self, weights: Mapping[str, Array], decomposition: Each) -> dict[str, Network | PromiseError]:
        return self.reassign(weights, decomposition, {})

    def reassign(
        self, weights: Mapping[str, Array], decomposition: Each, dense: Mapping[str, PromiseError]
    ) -> dict[str, Network | PromiseError]:
        """As `RankPolicy.reassign`. Dense weights count with their whole size.

        Raises
        ------
        RankError
            The smallest networks need more than the budget allows.
        """
        each = each_of(decomposition, weights)
        subjects = {name: Subject(working(x), (_in_roles(each[name], x),)) for name, x in weights.items()}
        chosen = self.plan(subjects, dense)
        return {name: found.network if isinstance(found, Point) else found for name, found in chosen.items()}

    def plan(
        self, subjects: Mapping[str, Subject], dense: Mapping[str, PromiseError], *, outside: int = 0
    ) -> dict[str, Point | PromiseError]:
        """As `RankPolicy.plan`.

        Raises
        ------
        RankError
            The smallest networks need more than the budget allows.
        """
        measure = MEASURES[self.of](self.batch)
        gap = sum(subject.size for subject in subjects.values()) // _STEPS
        points = self._points({name: subject for name, subject in subjects.items() if name not in dense}, gap)
        points |= {name: [] for name in dense if name in subjects}
        options = {name: self._options(subjects[name], points[name], measure) for name in subjects}
        total = sum(measure.dense(subject) for subject in subjects.values())
        extra = outside if self.whole else 0
        allowance = share(self.ratio, total + extra) - extra
        chosen = cheapest(options, allowance)
        if chosen is None:
            self._refuse(subjects, options, total, extra)
        assert chosen is not None
        return {
            name: points[name][k].among(points[name])
            if k < len(points[name])
            else self._why_dense(name, subjects[name], points, dense)
            for name, k in chosen.items()
        }

    def _points(self, subjects: Mapping[str, Subject], gap: int) -> dict[str, list[Point]]:
        """The points of every weight. Several weights are fitted at a time if that is faster."""
        if not subjects:
            return {}
        backend = of(next(iter(subjects.values())).x)
        points = backend.concurrently(partial(points_of, gap=gap), list(subjects.values()))
        return dict(zip(subjects, points, strict=True))

    def _options(self, subject: Subject, points: list[Point], measure: Measure) -> list[Option]:
        """The options of a weight: its points, and then the dense weight."""
        options = [Option(measure.of(p.network, subject), subject.importance * p.error) for p in points]
        return [*options, Option(measure.dense(subject), 0.0)]

    def _why_dense(
        self,
        name: str,
        subject: Subject,
        points: Mapping[str, list[Point]],
        dense: Mapping[str, PromiseError],
    ) -> PromiseError:
        if name in dense:
            return dense[name]
        if points[name]:
            return PromiseError(f"{self} has room for the dense weight: others lose less for each parameter")
        shape = tuple(subject.x.shape)
        tried = ", ".join(str(candidate) for candidate in subject.candidates)
        return PromiseError(
            f"the smallest rank of {tried} keeps as many parameters as the dense weight of shape {shape} has"
        )

    def _refuse(
        self, subjects: Mapping[str, Subject], options: Mapping[str, list[Option]], total: int, extra: int
    ) -> None:
        """Raise the error of a budget that cannot be met."""
        needed = sum(min(option.size for option in mine) for mine in options.values()) + extra
        allowed = share(self.ratio, total + extra)
        first = next(iter(subjects.values())).candidates[0]
        raise RankError(
            f"{self} allows {allowed:,} of {total + extra:,} {self.of}, but rank {first.step} of {first} already keeps "
            f"{needed:,} for {list(subjects)}; the smallest budget possible is {_decimals(needed, total + extra)}"
        )

    def __str__(self) -> str:
        more = [] if self.of == "parameters" else [f"of={self.of}"]
        more += [f"batch={self.batch}"] if self.batch > 1 else []
        more += ["whole"] if self.whole else []
        return ",".join([f"budget:{self.ratio}", *more])


def points_of(subject: Subject, gap: int | None = None) -> list[Point]:
    """The points of all candidates of a weight (see `curve`).

    Raises
    ------
    RankError, WeightError
        No candidate has a network for this weight at all.
    """
    if subject.known is not None and gap in subject.known:
        return subject.known[gap]
    points: list[Point] = []
    errors: list[TncError] = []
    for candidate in subject.candidates:
        try:
            points += curve(subject, candidate, gap=gap)
        except (RankError, WeightError) as error:
            errors.append(error)
    if errors and len(errors) == len(subject.candidates):
        raise errors[0]
    if subject.known is not None:
        subject.known[gap] = points
    return points


def _in_roles(decomposition: Decomposition, x: Array) -> InRoles:
    return decomposition if isinstance(decomposition, InRoles) else InRoles(decomposition, guessed(tuple(x.shape)))


def _decimals(part: int, whole: int) -> float:
    """The fraction ``part / whole``, rounded up to six decimals."""
    return -(-part * 10**6 // whole) / 10**6
