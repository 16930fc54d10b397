"""How much the error of each weight matters: how far it alone takes the outputs of the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tnc.decomposition import Factorization
from tnc.errors import RankError, WeightError
from tnc.fit.linalg import wide
from tnc.jobs import Job, Weighing, store
from tnc.nn.calibration.judge import Judge
from tnc.nn.calibration.metrics import Site
from tnc.nn.calibration.values import Means, distance, rebuilt
from tnc.nn.data.calls import Calls
from tnc.nn.data.evaluation import evaluating
from tnc.nn.data.outputs import outputs, rows
from tnc.ranks.allocation import even_network

__all__ = ["few", "importances"]

_SAMPLES, _FEWEST, _POSITIONS = 64, 8, 4096
"""Samples that the model runs on once for each weight: fewer, but not below `_FEWEST`, if their outputs have more than
`_POSITIONS` positions, as those of texts do."""

_LEAST = 1e-9
"""Squared errors below this one say nothing."""


def importances(
    model: nn.Module,
    calls: Calls,
    jobs: Mapping[str, Job],
    sites: Mapping[str, Site],
    means: Means,
    weighings: Mapping[str, Weighing],
) -> dict[str, float]:
    """The distance of the model's outputs that a squared relative error of 1 of each weight makes.

    Each weight in turn is replaced by a quick fit of about the size that the budget keeps on average. The distance of
    the outputs that it makes is divided by its squared error, because small distances grow in proportion to that.

    Parameters
    ----------
    model : torch.nn.Module
    calls : Calls
    jobs : mapping of str to Job
    sites : mapping of str to Site
    means : Means
        Of the inputs of each weight.
    weighings : mapping of str to Weighing
    """
    judge = Judge(model, few(model, calls))
    found = {}
    for name, job in jobs.items():
        trial = _trial(job, weighings[name])
        if trial is None:
            continue
        factorization, error = trial
        values = rebuilt(model, {name: factorization}, sites, means)
        found[name] = distance(model, judge, values) / max(error**2, _LEAST)
    return found


def few(model: nn.Module, calls: Calls) -> Calls:
    """The samples that the model runs on once for each weight."""
    one = calls.first(1)
    with torch.no_grad(), evaluating(model):
        found = outputs(one.returned(model, one.batches[0]))
    positions = max(1, *(len(rows(x)) for x in found))
    return calls.first(min(_SAMPLES, max(_FEWEST, _POSITIONS // positions)))


def _trial(job: Job, weighing: Weighing) -> tuple[Factorization, float] | None:
    """A quick fit of a weight, and its error; None if no network is small enough."""
    metric = weighing.like(job.x).metric
    shape, ratio = tuple(job.weight.shape), getattr(job.rule.rank, "ratio", 0.5)
    for candidate in job.candidates:
        try:
            least = candidate.network(shape, candidate.step).clipped()
            allowance = max(least.n_params, int(ratio * job.subject.size))
            network = even_network(candidate, shape, allowance)
        except (RankError, WeightError):
            continue
        found = candidate.quick(job.x, network, metric, seed=job.seed)
        cores = [store(core, job.weight) for core in found]
        stored = Factorization(network, cores, shape, candidate.known(network, shape))
        return stored, candidate.error(job.weight, stored.map(wide).dense(), metric)
    return None
