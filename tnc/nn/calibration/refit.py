"""Fit the weights of a compressed model again, in the order of the forward pass, to the inputs that they get now.

A fit to the inputs of the dense model does not know the errors of the layers before. With the inputs ``x`` in the dense
model and ``x̂`` in the compressed one, these fits minimize ``||W x - Ŵ x̂||`` (arXiv 2604.02119).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan
from typing import NamedTuple

from torch import Tensor, nn

from tnc.backends import move, of
from tnc.checkpoint import Checkpoint
from tnc.decomposition import Factorization
from tnc.fit.linalg import working
from tnc.jobs import Done, Job, Weighing, timed
from tnc.network import Network
from tnc.nn.calibration.metrics import Site, target, weighing
from tnc.nn.calibration.pairs import shifts
from tnc.nn.calibration.rounds import rounds
from tnc.nn.calibration.statistics import Statistics
from tnc.nn.calibration.values import Means, rebuilt
from tnc.nn.data.calls import Calls
from tnc.ranks.curves import Point
from tnc.report import Report, Row
from tnc.typing import Array
from tnc.weights import Progress

__all__ = ["Refit", "polished", "refitted"]


class Refit(NamedTuple):
    """Weights that were fitted again, and the means of their inputs in the dense model and in the present one."""

    checkpoint: Checkpoint
    means: Means


def polished(checkpoint: Checkpoint, jobs: Mapping[str, Job], weighings: Mapping[str, Weighing]) -> Checkpoint:
    """Sweep the cores of a checkpoint to the end, in their networks.

    Parameters
    ----------
    checkpoint : Checkpoint
    jobs : mapping of str to Job
    weighings : mapping of str to Weighing
    """
    draft = _Draft.of(checkpoint)
    names = [name for name, factorization in checkpoint.factorized.items() if not _is_closed(factorization.network)]
    if names:
        results = of(jobs[names[0]].x).concurrently(
            lambda name: draft.fitted(name, jobs[name], weighings[name], jobs[name].x), names
        )
        for name, result in zip(names, results, strict=True):
            draft.take(name, *result)
    return draft.checkpoint()


def _is_closed(network: Network) -> bool:
    """Whether a network is a matrix product of two cores, whose quick fit is the best one already."""
    axes_whole = all(any(set(axis) <= set(core) for core in network.operands) for axis in network.axes)
    return network.is_tree and len(network.operands) == 2 and axes_whole


def refitted(
    model: nn.Module,
    calls: Calls,
    checkpoint: Checkpoint,
    jobs: Mapping[str, Job],
    sites: Mapping[str, Site],
    statistics: Statistics,
    values: Mapping[str, Tensor],
    *,
    gradients: bool,
    progress: Progress | None = None,
) -> Refit:
    """Fit all weights of a checkpoint again, in the order of the forward pass, in their networks.

    Parameters
    ----------
    model : torch.nn.Module
        The dense model. It is not changed.
    calls : Calls
    checkpoint : Checkpoint
    jobs : mapping of str to Job
        One for each factorized weight that has statistics.
    sites : mapping of str to Site
    statistics : Statistics
    values : mapping of str to Tensor
        Present values of weights and biases.
    gradients : bool
        Whether gradients at the outputs weigh the errors.
    progress : callable, optional
    """
    present = dict(values)
    dense = {name: x.detach() for name, x in model.named_parameters(remove_duplicate=False) if name in present}
    draft, means = _Draft.of(checkpoint), Means()
    order = rounds(model, calls, [name for name in jobs if name in checkpoint.factorized])
    found = shifts(model, calls, order, dense, present)
    for each in found if progress is None else progress(found, total=len(order), description="fitting in order"):
        for name, shift in each.items():
            if shift is None:
                continue
            moments, goal = target(sites[name], shift, statistics[name], calls.samples)
            seen = weighing(sites[name], moments, gradients=gradients)
            if seen is None:
                continue
            x = move(working(goal), of(jobs[name].x))
            if draft.take(name, *draft.fitted(name, jobs[name], seen, x)):
                means[name] = shift.mean, shift.mean_shifted
                present |= rebuilt(model, {name: draft.entries[name]}, sites, means)
    return Refit(draft.checkpoint(), means)


class _Draft(NamedTuple):
    """The factorizations and the rows of a checkpoint, which change one by one."""

    old: Checkpoint
    entries: dict[str, Factorization]
    rows: dict[str, Row]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Draft:
        return cls(checkpoint, dict(checkpoint.factorized), {row.name: row for row in checkpoint.report.rows})

    def fitted(self, name: str, job: Job, seen: Weighing, x: Array) -> Done:
        """The cores of a weight, swept on for `x`, the weight that they shall be now."""
        old = self.entries[name]
        start = [move(working(core), of(x)) for core in old.cores]
        job = replace(job, weighing=seen.like(x), target=x, start=start)
        candidate = next(c for c in job.candidates if str(c) == self.rows[name].method)
        return timed(name, job, Point(candidate, old.network, nan))

    def take(self, name: str, new: Factorization | None, row: Row) -> bool:
        """Take cores, unless the fit failed."""
        if new is None:
            return False
        before = self.rows[name]
        self.entries[name] = new
        self.rows[name] = replace(
            row, seconds=before.seconds + row.seconds, predicted=before.predicted, candidates=before.candidates,
            operations_before=before.operations_before, operations_after=before.operations_after,
        )  # fmt: skip
        return True

    def checkpoint(self) -> Checkpoint:
        """A checkpoint with the factorizations as they are now."""
        old = self.old
        merged = {name: self.entries.get(name, old[name]) for name in old if name not in old.aliases}
        report = Report(list(self.rows.values()), old.report.total)
        return Checkpoint(merged, methods=old.methods, aliases=old.aliases, narrow=old.narrow, report=report)
