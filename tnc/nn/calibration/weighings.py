"""What is known about the weights of a model, and how their errors count: from inputs, or from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tnc.errors import DataError, WeightError, listed
from tnc.fit.metric import Metric
from tnc.jobs import Weighing
from tnc.nn.calibration.gathering import gather
from tnc.nn.calibration.metrics import Site, site_of, weighing
from tnc.nn.calibration.statistics import Statistics
from tnc.nn.data.calls import Calls
from tnc.roles import AxisRoles, guessed
from tnc.rules import Rule
from tnc.weights import Progress

__all__ = ["OBJECTIVES", "Observed", "evened", "objectives_of", "observed", "weighings_of"]

OBJECTIVES = ("output", "fisher")
"""What a fit and an allocation can minimize: relative errors of outputs, or the predicted rise of the loss."""


def objectives_of(name: str) -> tuple[str, ...]:
    """The objectives to try.

    Raises
    ------
    DataError
        There is no such objective.
    """
    if name != "auto" and name not in OBJECTIVES:
        raise DataError(f"objective={name!r} is not known: take one of auto, {', '.join(OBJECTIVES)}")
    return OBJECTIVES if name == "auto" else (name,)


class Observed(NamedTuple):
    """What is known of the weights of a model.

    Attributes
    ----------
    statistics : Statistics
    sites : dict of str to Site
        The weights that have statistics.
    unreached : list of str
        Weights that no input reaches.
    """

    statistics: Statistics
    sites: dict[str, Site]
    unreached: list[str]

    def weighings(self, objective: str) -> dict[str, Weighing]:
        """How errors count by an objective. Empty if no statistics are for it.

        A weight without gradients counts by its outputs, and as much as the others on average.
        """
        known = self.statistics
        found = {
            name: weighing(site, known[name], gradients=objective == "fisher") for name, site in self.sites.items()
        }
        weighings = {name: each for name, each in found.items() if each is not None}
        if weighings and objective == "fisher":
            by_outputs = {name: weighing(self.sites[name], known[name], gradients=False) for name in found}
            importance = fmean(each.importance for each in weighings.values())
            for name, each in by_outputs.items():
                if each is not None and name not in weighings:
                    weighings[name] = each._replace(importance=importance)
        return weighings


def evened(weighings: Mapping[str, Weighing], names: Iterable[str]) -> dict[str, Weighing]:
    """Weighings of all names. Weights of which nothing is known count by their entries, as much as the others do.

    Parameters
    ----------
    weighings : mapping of str to Weighing
    names : iterable of str
    """
    if not weighings:
        return {}
    mean = Weighing(Metric(()), fmean(each.importance for each in weighings.values()))
    return {name: weighings.get(name, mean) for name in names}


def observed(
    model: nn.Module,
    calls: Calls | None,
    weights: Mapping[str, Tensor],
    groups: Sequence[tuple[Rule, list[str]]],
    roles: Mapping[str, AxisRoles],
    *,
    statistics: Statistics | None,
    gradients: bool,
    progress: Progress | None = None,
    seed: int = 0,
) -> Observed:
    """What is known of the weights that rules match. Statistics are gathered if they are not given.

    Weights whose roles a rule states otherwise than their module are left out.

    Parameters
    ----------
    model : torch.nn.Module
        The dense model.
    calls : Calls, optional
        Inputs, if no statistics are given.
    weights : mapping of str to Tensor
    groups : sequence of (Rule, list of str)
        The weights of each rule.
    roles : mapping of str to AxisRoles
        The roles of the axes of each weight, from its module.
    statistics : Statistics, optional
    gradients : bool
        Whether to gather moments of gradients, too.
    progress : callable, optional
    seed : int

    Raises
    ------
    DataError
        No input reaches a weight that a rule names, or the inputs or the statistics cannot be used.
    """
    names = [name for rule, mine in groups for name in mine if rule.roles is None or rule.roles == roles.get(name)]
    if statistics is None:
        statistics = gather(
            model, calls, gradients=gradients, names=names, missing="ignore", progress=progress, seed=seed
        )
    else:
        statistics.check({name: tuple(x.shape) for name, x in weights.items()})
    unreached = [name for name in names if name not in statistics]
    _refuse_named(groups, unreached)
    known = [name for name in names if name in statistics]
    sites = {name: site_of(model, name, weights[name], roles[name], statistics[name]) for name in known}
    return Observed(statistics, sites, unreached)


def _refuse_named(groups: Sequence[tuple[Rule, list[str]]], unreached: Sequence[str]) -> None:
    """Refuse weights that a rule other than ``"*"`` matches, but that no input reaches."""
    named = [name for rule, names in groups for name in names if name in unreached and rule.match != "*"]
    if named:
        raise DataError(
            f"no batch of data= reaches {listed(named)}: give inputs that use them, or leave them dense with "
            f"tnc.Rule({named[0]!r}, None) as the first rule"
        )


def weighings_of(
    statistics: Statistics, weights: Mapping[str, Any], roles: Mapping[str, AxisRoles], objective: str = "output"
) -> dict[str, Weighing]:
    """How errors of weights count, without their model, for `tnc.weights.compress_weights`.

    No bias is corrected then, so the means of the inputs count as well.

    Parameters
    ----------
    statistics : Statistics
    weights : mapping of str to array
        All weights of the model.
    roles : mapping of str to AxisRoles
        The roles of axes, where they are known. The others are guessed, as in `tnc.weights.compress_weights`.
    objective : {"output", "fisher"}

    Returns
    -------
    dict of str to Weighing
        For the weights that have statistics.

    Raises
    ------
    DataError
        The statistics are of another model, have no moments of gradients, or do not fit the roles of a weight's axes.
    """
    if objective not in OBJECTIVES:
        raise DataError(f"objective={objective!r} is not known: take one of {', '.join(OBJECTIVES)}")
    statistics.check({name: tuple(x.shape) for name, x in weights.items()})
    found: dict[str, Weighing] = {}
    for name in statistics:
        value, shape = torch.tensor(weights[name]), tuple(weights[name].shape)
        site = Site(name, value, roles.get(name) or guessed(shape))
        try:
            each = weighing(site, statistics[name], gradients=objective == "fisher")
            if each is not None:
                each.metric.check(tuple(site.roles.permuted(value).shape))
                found[name] = each
        except (WeightError, ValueError, RuntimeError, IndexError) as error:
            raise DataError(
                f"the statistics of {name} do not fit axes of the roles {site.roles}: state those of its module"
            ) from error
    if objective == "fisher" and not found:
        raise DataError(
            f"objective='fisher' needs moments of gradients, which the statistics of {listed(statistics)} do not have: "
            "gather them with gradients=True"
        )
    return found
