"""Versions of a compressed model by several objectives, each judged by the outputs of the whole model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from glob import escape
from math import fsum, isfinite, sqrt
from statistics import fmean, stdev
from time import perf_counter
from typing import NamedTuple

from torch import Tensor, nn

from tnc.backends import Backend
from tnc.checkpoint import Checkpoint
from tnc.errors import DataError
from tnc.jobs import Job, Weighing
from tnc.nn.calibration.importance import importances
from tnc.nn.calibration.judge import Judge
from tnc.nn.calibration.refit import polished, refitted
from tnc.nn.calibration.statistics import Statistics
from tnc.nn.calibration.values import Means, distances, rebuilt
from tnc.nn.calibration.weighings import OBJECTIVES, Observed, evened, observed
from tnc.nn.data.calls import Calls
from tnc.nn.data.division import divided
from tnc.ranks.curves import Curves
from tnc.roles import AxisRoles
from tnc.rules import Rule, matched, ties
from tnc.settings import current_backend
from tnc.weights import Progress, compress_weights, jobs_of

__all__ = ["Options", "Plan", "Version", "Work"]

_HELD_OUT, _MOST_HELD_OUT = 0.25, 256
"""The share of the samples that judge, and the most of them."""

_MUCH = 0.8
"""Distances smaller by this factor are taken as smaller, whatever their spread over the batches."""


@dataclass(frozen=True)
class Options:
    """How to calibrate.

    Attributes
    ----------
    objectives : tuple of str
        Those of `OBJECTIVES` to try. The one whose model is nearest to the dense one on held-out inputs wins.
    shift : bool
        Whether to fit the layers again, in the order of the forward pass, on the inputs that the compressed layers
        before them make. It is kept only if the model is nearer to the dense one then.
    shift_samples : int
        Samples for these fits; all of them if they are tokens, which have few input vectors.
    backend : str or Backend, optional
    seed : int
    progress : callable, optional
    """

    objectives: tuple[str, ...] = OBJECTIVES
    shift: bool = True
    shift_samples: int = 256
    backend: str | Backend | None = None
    seed: int = 0
    progress: Progress | None = None


class Plan(NamedTuple):
    """How the errors of a version count.

    Attributes
    ----------
    objective : str
        One of `OBJECTIVES`.
    measured : bool
        Whether a budget weighs the errors of different weights by measured distances of the model's outputs. Otherwise
        it does so by what gradients predict. These take errors as independent, and inputs and gradients, too.
    """

    objective: str
    measured: bool

    def __str__(self) -> str:
        return f"{self.objective}, measured" if self.measured and self.objective == "fisher" else self.objective


class Version(NamedTuple):
    """A compressed version of a model.

    Attributes
    ----------
    plan : Plan
    checkpoint : Checkpoint
    values : dict of str to Tensor
        Of all factorized weights, and of the biases that correct means.
    parts : tuple of float
        What each batch of held-out inputs adds to the distance.
    """

    plan: Plan
    checkpoint: Checkpoint
    values: dict[str, Tensor]
    parts: tuple[float, ...]

    @property
    def distance(self) -> float:
        """Of the outputs from those of the dense model, on held-out inputs."""
        return fsum(self.parts)

    def surely_nearer(self, other: Version) -> bool:
        """Whether it is nearer than another version by more than chance: twice the standard error over the batches.

        A version whose distance is smaller by a fifth, or that is judged by two batches or fewer, counts as nearer in
        any case.
        """
        if self.distance >= other.distance:
            return False
        if len(self.parts) < 3 or not isfinite(other.distance) or self.distance <= _MUCH * other.distance:
            return True
        gains = [theirs - ours for ours, theirs in zip(self.parts, other.parts, strict=True)]
        return fmean(gains) > 2 * stdev(gains) / sqrt(len(gains))


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that versions of a model are made from. The model itself is not changed.

    Attributes
    ----------
    model : torch.nn.Module
    seen : Calls, optional
        The inputs of statistics and fits.
    held_out : Calls, optional
        Other inputs, which judge.
    weights : mapping of str to Tensor
    rules : sequence of Rule
    roles : mapping of str to AxisRoles
    observed : Observed
    jobs : dict of str to Job
        The fits of all weights that a rule matches, without a weighing.
    options : Options
    seconds : dict of str to float
        The time that each part took.
    curves : defaultdict
        By objective and weight: errors over sizes. Plans of one objective share them, as they have the same metric.
    """

    model: nn.Module
    seen: Calls | None
    held_out: Calls | None
    weights: Mapping[str, Tensor]
    rules: Sequence[Rule]
    roles: Mapping[str, AxisRoles]
    observed: Observed
    jobs: dict[str, Job]
    options: Options
    seconds: dict[str, float] = field(default_factory=dict)
    curves: defaultdict[tuple[str, str], Curves] = field(default_factory=lambda: defaultdict(dict))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        calls: Calls | None,
        weights: Mapping[str, Tensor],
        rules: Sequence[Rule],
        roles: Mapping[str, AxisRoles],
        options: Options,
        statistics: Statistics | None,
    ) -> Work:
        """Hold out some inputs, and gather statistics unless they are given.

        Parameters
        ----------
        model : torch.nn.Module
        calls : Calls, optional
            Not needed to predict from statistics.
        weights : mapping of str to Tensor
        rules : sequence of Rule
        roles : mapping of str to AxisRoles
        options : Options
        statistics : Statistics, optional
            All as for `calibrated`.

        Raises
        ------
        DataError
            No input reaches a weight that a rule names, or the inputs or the statistics cannot be used.
        """
        start = perf_counter()
        seen = held_out = None
        if calls is not None:
            seen, held_out = divided(calls, min(_HELD_OUT, _MOST_HELD_OUT / calls.samples), model)
        groups = matched(weights, list(rules), ties(weights))
        known = observed(
            model, seen, weights, groups, roles, statistics=statistics, gradients="fisher" in options.objectives,
            progress=options.progress, seed=options.seed,
        )  # fmt: skip
        rules = [*(Rule(escape(name), None) for name in known.unreached), *rules]
        reached = [(rule, [name for name in names if name not in known.unreached]) for rule, names in groups]
        jobs = jobs_of(weights, reached, roles, current_backend(options.backend), options.seed)
        work = cls(model, seen, held_out, weights, rules, roles, known, jobs, options)
        work.seconds["statistics"] = perf_counter() - start
        return work

    @cached_property
    def judge(self) -> Judge:
        """The dense model's outputs for the inputs that are held out."""
        assert self.held_out is not None  # who needs a judge has given inputs
        return Judge(self.model, self.held_out)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time to the seconds of a part."""
        start = perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - start

    def plans(self) -> list[Plan]:
        """The plans to try: one per objective, and for gradients one more with a budget by measured distances."""
        shared = self.seen is not None and any(job.rule.rank.shared for job in self.jobs.values())
        plans = [Plan(objective, shared and objective != "fisher") for objective in self.options.objectives]
        return plans + [Plan("fisher", measured=True)] * (shared and "fisher" in self.options.objectives)

    def weighings(self, plan: Plan) -> dict[str, Weighing]:
        """How errors count, with the importance of each weight for a shared budget. Empty if nothing is known.

        The importance is predicted by gradients, or measured: by how far the error of each weight alone takes the
        outputs.
        """
        weighings = self.observed.weighings(plan.objective)
        shared = {name: self.jobs[name] for name in weighings if self.jobs[name].rule.rank.shared}
        if plan.measured and shared:
            assert self.seen is not None  # there is something to measure with
            measured = importances(self.model, self.seen, shared, self.observed.sites, self.means, weighings)
            weighings |= {name: weighings[name]._replace(importance=n) for name, n in measured.items()}
        every = evened(weighings, self.jobs)
        return {name: each._replace(curves=self.curves[plan.objective, name]) for name, each in every.items()}

    def foreseen(self) -> tuple[str, dict[str, Weighing]]:
        """The last objective of which enough is known, and how errors count by it.

        Raises
        ------
        DataError
            Nothing is known for any of the objectives.
        """
        for objective in reversed(self.options.objectives):
            plan = next(plan for plan in self.plans() if plan.objective == objective)
            if weighings := self.weighings(plan):
                return objective, weighings
        raise _nothing_known(self.options.objectives)

    def versions(self) -> list[Version]:
        """A version for each plan of which enough is known, with quick fits.

        Raises
        ------
        DataError
            Nothing is known for any of the objectives.
        """
        found = []
        for plan in self.plans():
            with self.timing(str(plan)):
                if weighings := self.weighings(plan):
                    found.append(self._version(plan, weighings))
        if not found:
            raise _nothing_known(self.options.objectives)
        return found

    def compressed(self, weighings: Mapping[str, Weighing], *, dry_run: bool = False) -> Checkpoint:
        """The checkpoint of all weights.

        Parameters
        ----------
        weighings : mapping of str to Weighing
        dry_run : bool
            Only predict.
        """
        options = self.options
        return compress_weights(
            self.weights, list(self.rules), backend=options.backend, seed=options.seed, progress=options.progress,
            roles=self.roles, weighings=weighings, dry_run=dry_run,
        )  # fmt: skip

    def _version(self, plan: Plan, weighings: Mapping[str, Weighing]) -> Version:
        brief = {name: each._replace(brief=True) for name, each in weighings.items()}
        return self._judged(plan, self.compressed(brief), self.means)

    def polished(self, version: Version) -> Version:
        """The same version with cores that are swept to the end."""
        weighings = evened(self.observed.weighings(version.plan.objective), self.jobs)
        checkpoint = polished(version.checkpoint, self.jobs, weighings)
        return self._judged(version.plan, checkpoint, self.means)

    def shifted(self, version: Version) -> Version:
        """A version whose weights were fitted again, in order, to the inputs that they get in the compressed model."""
        assert self.seen is not None  # there is a version
        most = self.seen.samples if self.seen.of_tokens() else self.options.shift_samples  # images have many patches
        known = {name: self.jobs[name] for name in self.observed.sites}
        refit = refitted(
            self.model, self.seen.first(most), version.checkpoint, known, self.observed.sites,
            self.observed.statistics, version.values, gradients=version.plan.objective == "fisher",
            progress=self.options.progress,
        )  # fmt: skip
        return self._judged(version.plan, refit.checkpoint, self.means | refit.means)

    def _judged(self, plan: Plan, checkpoint: Checkpoint, means: Means) -> Version:
        values = rebuilt(self.model, checkpoint.factorized, self.observed.sites, means)
        return Version(plan, checkpoint, values, tuple(distances(self.model, self.judge, values)))

    @property
    def means(self) -> Means:
        """The means of the inputs of every weight, in the dense model."""
        return {name: (moments.mean, moments.mean) for name, moments in self.observed.statistics.items()}


def _nothing_known(objectives: Sequence[str]) -> DataError:
    what = "moments of gradients: gather the statistics with gradients=True" if objectives == ("fisher",) else "inputs"
    return DataError(f"objective={' or '.join(map(repr, objectives))} needs {what}, and no weight has them")
