"""One weight to be compressed: its network is chosen with those of its rule, then its cores are fitted and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

from array_api_compat import array_namespace

from tnc.backends import move, of
from tnc.decomposition import Factorization, InRoles
from tnc.errors import PromiseError, TncError
from tnc.fit.linalg import working
from tnc.fit.metric import Metric
from tnc.ranks.base import RankPolicy
from tnc.ranks.curves import Curves, Point, Subject, predicted
from tnc.ranks.measures import MEASURES
from tnc.report import Candidate, Row
from tnc.roles import AxisRoles
from tnc.rules import Rule
from tnc.storage import bfloat16, widen
from tnc.typing import Array, Cores

__all__ = ["Chosen", "Done", "Job", "Weighing", "bytes_of", "choose", "fit", "foresee", "guess", "store", "timed"]

Done: TypeAlias = tuple[Factorization | None, Row]
"""The factorization of a weight, or None where it stays dense; and its row of the report."""

_BATCH = 32
"""Samples of a batch, for the numbers of multiplications in the report."""

Chosen: TypeAlias = Point | PromiseError
"""A decomposition and a network, or the reason why a weight stays dense."""


class Weighing(NamedTuple):
    """How the errors of a weight count.

    Attributes
    ----------
    metric : Metric
        The norm of errors, for the weight with its axes in the order group, stack, rows, columns, kernel.
    importance : float
        What a squared relative error of 1 in this norm adds to the loss.
    uses : float
        Input vectors for each sample, such as the places of a convolution.
    brief : bool
        Whether a quick fit will do, because another one follows.
    curves : dict, optional
        Points of the weight that are known in this metric: see `Subject`.
    """

    metric: Metric
    importance: float = 1.0
    uses: float = 1.0
    brief: bool = False
    curves: Curves | None = None

    def like(self, x: Array) -> Weighing:
        """The same on the device of `x`, in float64."""
        return self._replace(metric=self.metric.like(x, array_namespace(x).float64))


@dataclass(frozen=True, eq=False)
class Job:
    """A weight to be fitted.

    Attributes
    ----------
    rule : Rule
    candidates : tuple of InRoles
        The decompositions to choose among, with the roles of the weight's axes.
    weight : array
        The weight as given.
    x : array
        The weight on the device and in the dtype of the fit.
    narrow : bool
        Whether the cores are stored as bfloat16 although the weight is float32.
    seed : int
    weighing : Weighing, optional
        With it, errors are those of the layer's outputs.
    target : array, optional
        What the cores approximate, if it is not the weight: with inputs that changed, another weight is better.
    start : sequence of array, optional
        Cores of a similar weight in the same network, to start from. Only with a weighing.
    """

    rule: Rule
    candidates: tuple[InRoles, ...]
    weight: Array
    x: Array
    narrow: bool = False
    seed: int = 0
    weighing: Weighing | None = None
    target: Array | None = None
    start: Cores | None = None

    @property
    def subject(self) -> Subject:
        """The weight as rank policies see it."""
        if self.weighing is None:
            return Subject(self.x, self.candidates, itemsize=self.itemsize, seed=self.seed)
        metric, importance, uses, _, curves = self.weighing
        return Subject(self.x, self.candidates, metric, importance, uses, self.itemsize, self.seed, curves)

    @property
    def itemsize(self) -> int:
        """Bytes of a stored number."""
        return bytes_of(self.weight, self.narrow)

    def rise(self, error: float) -> float | None:
        """The rise of the loss from a predicted squared relative error; None if that is no number."""
        rise = error * (self.weighing.importance if self.weighing else 1.0)
        return rise if isfinite(rise) else None

    def row(self, name: str, point: Point | None = None, why: str = "") -> Row:
        """The row of the report for the weight as a network, or, with the reason, for the dense weight.

        It has no errors.

        Parameters
        ----------
        name : str
            Of the weight.
        point : Point, optional
        why : str
        """
        shape, size, after = tuple(self.weight.shape), prod(self.weight.shape), self._operations(point)
        known: dict[str, Any] = {
            "itemsize": self.itemsize,
            "operations_before": self._operations(None),
            "operations_after": after,
        }
        if point is None:
            return Row(name, "dense", shape, (), size, size, size, note=why, **known)
        decomposition, network, predicted, rivals = point
        nominal = self.rule.rank.nominal(shape, decomposition, network)
        row = Row(name, str(decomposition), shape, network.ranks, size, network.n_params, nominal, None, **known)
        candidates = tuple(Candidate(str(rival.decomposition), rival.size, self.rise(rival.error)) for rival in rivals)
        return replace(row, predicted=self.rise(predicted), candidates=candidates)

    def _operations(self, point: Point | None) -> int | None:
        """Multiplications for each sample; None if it is not known how often a sample uses the weight."""
        if self.weighing is None:
            return None
        measure, subject = MEASURES["flops"](_BATCH), self.subject
        return (measure.dense(subject) if point is None else measure.of(point.network, subject)) // 2


def bytes_of(x: Array, narrow: bool = False) -> int:
    """Bytes of a number of an array. A narrow one is stored as bfloat16."""
    size = getattr(x.dtype, "itemsize", None)
    return 2 if narrow else int(size or array_namespace(x).finfo(x.dtype).bits // 8)


def choose(jobs: Mapping[str, Job], dense: Mapping[str, PromiseError], outside: int = 0) -> Mapping[str, Chosen]:
    """A network for every weight of a rule, or the reason why it stays dense.

    Parameters
    ----------
    jobs : mapping of str to Job
        All of one rule.
    dense : mapping of str to PromiseError
        Weights that stay dense, with the reasons.
    outside : int
        Size of all other weights of the model: parameters, or bytes where the policy counts these.
    """
    policy = next(iter(jobs.values())).rule.rank
    try:
        found: Mapping[str, Chosen] = policy.plan(
            {name: job.subject for name, job in jobs.items()}, dense, outside=outside
        )
        return found
    except TncError as error:
        raise type(error)(f"{', '.join(jobs)}: {error}") from error


def timed(name: str, job: Job, chosen: Chosen, share: float = 0.0) -> Done:
    """Fit one weight. Its row has the seconds of the fit, and its share of the seconds of the choice.

    Parameters
    ----------
    name : str
    job : Job
    chosen : Point or PromiseError
    share : float
        Seconds of the choice.
    """
    start = perf_counter() - share
    try:
        factorization, row = fit(name, job, chosen)
    except TncError as error:
        raise type(error)(f"{name}: {error}") from error
    return factorization, replace(row, seconds=perf_counter() - start)


def fit(name: str, job: Job, chosen: Chosen) -> Done:
    """Fit a weight, round the cores to the stored dtype, and check the promise.

    Where rounding broke the promise, a stricter one is tried.

    Parameters
    ----------
    name : str
    job : Job
    chosen : Point or PromiseError
    """
    rule, weight, why, policy = job.rule, job.weight, "", job.rule.rank
    for _ in range(4):
        if isinstance(chosen, PromiseError):
            why = why or str(chosen)
            break
        decomposition = chosen.decomposition
        if (too_large := _too_large(job, chosen, policy)) is not None:
            why = why or too_large
            break
        stored, error, output_error = _stored(job, chosen)
        judged = error if output_error is None else output_error
        if not judged < 1.0:  # this form is also true for NaN
            why = f"{decomposition} ends at an error of {judged:.3g}, no better than a weight of zeros"
            break
        if rule.rank.accepts(judged):
            row = replace(job, rule=replace(rule, rank=policy)).row(name, chosen)
            row = replace(row, note=guess(stored.roles), error=error, output_error=output_error)
            return stored, replace(row, conditioning=_rounded(stored, job).conditioning(job.x))
        why = f"stored as {'bfloat16' if job.narrow else weight.dtype} the error is {judged:.3g}, above {rule.rank}"
        policy = policy.stricter(judged)
        chosen = choose({name: replace(job, rule=replace(rule, rank=policy))}, {})[name]
    return None, job.row(name, why=why)


def foresee(name: str, job: Job, chosen: Chosen) -> Row:
    """The row of a weight that is not fitted, with the predicted rise of the loss, and without errors.

    Where the choice of the ranks predicted nothing, a fit with few sweeps does.

    Parameters
    ----------
    name : str
    job : Job
    chosen : Point or PromiseError
    """
    if isinstance(chosen, PromiseError):
        return job.row(name, why=str(chosen))
    if (too_large := _too_large(job, chosen, job.rule.rank)) is not None:
        return job.row(name, why=too_large)
    if not isfinite(chosen.error):
        chosen = chosen._replace(error=predicted(job.subject, chosen.decomposition, chosen.network))
    note = guess(chosen.decomposition.known(chosen.network, tuple(job.weight.shape)))
    return replace(job.row(name, chosen), note=note)


def _too_large(job: Job, point: Point, policy: RankPolicy) -> str | None:
    """Why a weight stays dense, if its network is no smaller than it is; else None."""
    size, kept = prod(job.weight.shape), point.network.n_params
    return f"{point.decomposition}@{policy} would keep {kept:,} of {size:,} parameters" if kept >= size else None


def _stored(job: Job, point: Point) -> tuple[Factorization, float, float | None]:
    """The cores as they are stored, the relative error of the weight, and that of the outputs if it is known."""
    decomposition, network = point[:2]
    target = job.x if job.target is None else job.target
    metric = job.weighing.metric if job.weighing else None
    if job.start is not None and metric is not None:
        cores = decomposition.improved(target, network, metric, job.start)
    elif job.weighing is not None and job.weighing.brief:
        cores = decomposition.quick(target, network, metric, seed=job.seed)
    else:
        cores = decomposition.fit(target, network, seed=job.seed, metric=metric)
    stored = [store(core, job.weight, job.narrow) for core in cores]
    roles = decomposition.known(network, tuple(job.weight.shape))
    factorization = Factorization(network, stored, tuple(job.weight.shape), roles)
    rounded = _rounded(factorization, job)
    output_error = None if metric is None else decomposition.error(target, rounded.dense(), metric)
    return factorization, rounded.error(job.x), output_error


def _rounded(stored: Factorization, job: Job) -> Factorization:
    """The stored cores on the device of the fit."""
    return stored.map(lambda core: move(working(core), of(job.x)))


def guess(roles: AxisRoles | None) -> str:
    """The note in the report about a weight whose roles were assumed; otherwise empty."""
    return f"axes assumed: {roles}; tnc.Rule(..., roles=...) states them" if roles and roles.assumed else ""


def store(core: Array, weight: Array, narrow: bool = False) -> Array:
    """A fitted core on the device and in the dtype of the weight.

    Parameters
    ----------
    core : array
    weight : array
        The weight as given.
    narrow : bool
        Whether to round the values to bfloat16.

    Returns
    -------
    array
    """
    home = of(weight)
    core = move(core, home)
    if narrow:
        core = home.from_numpy(widen(bfloat16(home.to_numpy(core))))
    return array_namespace(core).astype(core, weight.dtype)
