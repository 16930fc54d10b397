"""How much each weight of a model can lose: a curve of predicted rises of the loss over sizes, for each format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from tnc import showing
from tnc.backends import Backend, of
from tnc.draw.shapes import figure
from tnc.errors import TncError
from tnc.jobs import Job
from tnc.nn.calibration.statistics import Statistics
from tnc.nn.calibration.versions import Options, Work
from tnc.nn.calibration.weighings import objectives_of
from tnc.nn.data.calls import Calls, Forward
from tnc.nn.surgery.matching import dense_weights
from tnc.nn.surgery.refusals import refuse_without_data
from tnc.ranks.budget import points_of
from tnc.rules import matched, rules_of, ties
from tnc.settings import current_backend
from tnc.weights import Progress, jobs_of

__all__ = ["Sensitivity", "Step", "sensitivity"]

_SHARES = (0.75, 0.5, 0.33, 0.2, 0.1)
"""Shares of the parameters that the table shows."""


@dataclass(frozen=True)
class Step:
    """One point of a curve.

    Attributes
    ----------
    name : str
        Name of the parameter.
    method : str
        The decomposition.
    ranks : tuple of int
        Size of every bond.
    parameters : int
    share : float
        Parameters, relative to those of the dense weight.
    predicted : float or None
        The predicted rise of the loss, or the squared relative error, as `Sensitivity.objective` says; None if it is
        not a number.
    """

    name: str
    method: str
    ranks: tuple[int, ...]
    parameters: int
    share: float
    predicted: float | None


class Sensitivity:
    """Curves of the weights of a model.

    Parameters
    ----------
    rows : iterable of Step
        By weight, decomposition and size.
    objective : {"fisher", "output", "weight"}
        What is predicted: the rise of the loss of a sample, or the squared relative error of outputs or of the weight.
    """

    def __init__(self, rows: Iterable[Step], objective: str) -> None:
        self.rows, self.objective = tuple(rows), objective

    @property
    def curves(self) -> dict[tuple[str, str], list[Step]]:
        """The points of each curve, by the name of the weight and the decomposition."""
        found: dict[tuple[str, str], list[Step]] = {}
        for row in self.rows:
            found.setdefault((row.name, row.method), []).append(row)
        return found

    def table(self) -> Table:
        """A rich table: one row for each curve, with the predictions at some shares of the parameters."""
        curves = self.curves
        columns = [
            showing.Column("name", [name for name, _ in curves]),
            showing.Column("method", [method for _, method in curves]),
        ]
        for share in _SHARES:
            cells = [_at(steps, share) for steps in curves.values()]
            columns.append(showing.Column(f"{share:.0%}", cells, True))
        return showing.table(columns, f"{_WORDS[self.objective]}, by share of the parameters kept")

    def __str__(self) -> str:
        return showing.plain(self.table())

    def __repr__(self) -> str:
        return f"<Sensitivity: {len(self.curves)} curves of {len({row.name for row in self.rows})} weights>"

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types: ``objective`` and ``rows``."""
        return {"objective": self.objective, "rows": [asdict(row) for row in self.rows]}

    def to_json(self) -> str:
        """JSON text of `to_dict`."""
        return json.dumps(self.to_dict())

    def picture(self, path: str | Path) -> None:
        """Draw the curve of every weight, of its best decomposition at each size (extra ``plot``).

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        drawn = figure(9, 5, layout="constrained")
        axes = drawn.subplots()
        for name in dict.fromkeys(row.name for row in self.rows):
            steps = _best([row for row in self.rows if row.name == name])
            axes.plot([step.share for step in steps], [step.predicted for step in steps], label=name)
        axes.set(xscale="log", yscale="log", xlabel="share of the parameters", ylabel=_WORDS[self.objective])
        if 0 < len(axes.lines) <= 20:
            axes.legend(fontsize="small")
        drawn.savefig(path)


_WORDS = {
    "fisher": "predicted rise of the loss",
    "output": "squared relative error of outputs",
    "weight": "squared relative error of the weight",
}
"""What is predicted, by objective."""


def _at(steps: list[Step], share: float) -> str:
    """The smallest prediction of a curve up to a share of the parameters; empty if no point is so small."""
    values = [step.predicted for step in steps if step.share <= share and step.predicted is not None]
    return f"{min(values):.2e}" if values else ""


def _best(steps: list[Step]) -> list[Step]:
    """The points that predict less than every smaller one, by size."""
    found: list[Step] = []
    least = float("inf")
    for step in sorted(steps, key=lambda step: step.parameters):
        if step.predicted is not None and step.predicted < least:
            found, least = [*found, step], step.predicted
    return found


def sensitivity(
    model: nn.Module,
    data: Any = None,
    *,
    decomposition: Any = "auto",
    forward: Forward | None = None,
    statistics: Statistics | None = None,
    objective: str = "auto",
    backend: str | Backend | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """How much each weight of a model can lose. The model is not changed, and nothing is fitted fully.

    These are the curves among which a `Budget` chooses.

    Parameters
    ----------
    model : torch.nn.Module
    data : iterable, optional
        Calibration inputs, as in `compress`. Without inputs or statistics, errors of the weights are predicted.
    decomposition : str, Decomposition, Rule or list of Rule
        One decomposition, several to compare (``"auto"``), or rules on parameter names, whose ranks are not used.
    forward : callable, optional
        ``forward(model, batch)``, where calling the model takes more than passing the batch.
    statistics : Statistics, optional
        Those of this model, if they were gathered before (`tnc.nn.calibration.gather`).
    objective : {"auto", "output", "fisher"}
        What to predict: squared relative errors of outputs, or the rise of the loss by gradients. "auto" takes
        gradients where there are inputs or moments of them.
    backend : str, optional
        Where the fits run. By default the current backend, or else the device of each weight.
    seed : int
    progress : callable, optional
        Wraps the loops, `rich.progress.track` for instance.

    Returns
    -------
    Sensitivity

    Raises
    ------
    TncError
        As `compress`.
    """
    options = Options(objectives_of(objective), backend=backend, seed=seed, progress=progress)
    if data is None:
        refuse_without_data(forward, objective, statistics, predicts=True)
    calls = None if data is None else Calls.of(model, data, forward)
    found = dense_weights(model, rules_of(decomposition, 1.0))
    with torch.inference_mode(False), torch.no_grad():
        if calls is None and statistics is None:
            groups = found.given_to(lambda weights, rules, _: matched(weights, rules, ties(weights)))
            jobs = jobs_of(found.weights, groups, found.roles, current_backend(backend), seed)
            return Sensitivity(_steps(jobs, progress), "weight")
        work = found.given_to(
            lambda weights, rules, roles: Work.of(model, calls, weights, rules, roles, options, statistics)
        )
        chosen, weighings = work.foreseen()
        jobs = {name: replace(job, weighing=weighings[name].like(job.x)) for name, job in work.jobs.items()}
        return Sensitivity(_steps(jobs, progress), chosen)


def _steps(jobs: Mapping[str, Job], progress: Progress | None) -> list[Step]:
    """The points of all weights."""

    def steps(name: str) -> list[Step]:
        job, size = jobs[name], jobs[name].subject.size
        try:
            points = points_of(job.subject)
        except TncError as error:
            raise type(error)(f"{name}: {error}") from error
        return [
            Step(name, str(p.decomposition), p.network.ranks, p.network.n_params, p.network.n_params / size, rise)
            for p in points
            for rise in [job.rise(p.error)]
        ]

    names = list(jobs)
    run = of(jobs[names[0]].x).concurrently if names else map
    wrap = progress or (lambda results, **_: results)
    return [step for part in wrap(run(steps, names), total=len(names), description="curves") for step in part]
