"""A study: methods to replace the large layers of a network, and what they count."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.papers.changes import (
    Budgeted,
    Layers,
    aligned,
    budgeted,
    calibrated,
    compressed,
    count,
    matched,
    narrowed,
    tensorized,
    weights_of,
)
from benchmarks.papers.train import Data, Recipe

__all__ = ["Method", "Row", "Study", "counted", "stamp"]

Row = dict[str, Any]
"""One row of a table, as it is in the JSON file. ``runs`` has one entry per seed; it is empty if nothing was run."""


@dataclass(frozen=True)
class Method:
    """One way to replace the large layers.

    Attributes
    ----------
    name : str
        The name in the table.
    kind : {"dense", "paper", "control"}
    build : callable
        Makes the original network.
    layers : Layers
        Formats by parameter; empty for the dense network.
    narrow : mapping
        For the control with fewer units: the parameters allowed per layer.
    budget : Budgeted, optional
        In place of `layers`: one size for all weights. This size is counted; up to 1 % of it may be left over.
    start : {"fresh", "fit", "calibrated", "aligned", "dense"}
        How training starts: from random cores; from cores fitted to the weights of the trained dense network, or to the
        outputs of its layers; from random cores aligned with those weights; or without cores.
    starts : int
        How many random starts are tried for a twentieth of the steps. The one with the least validation loss goes on.
    trained : bool
        Whether the network is trained at all.
    frozen : bool
        Whether the random cores stay as they are while the rest is trained.
    core_rate : float, optional
        Relative learning rate of the cores, in place of that of the recipe (see `tnc.nn.parameter_groups`).
    published : mapping
        Values from the paper for this row: ``parameters``, ``accuracy``, ``factor``.
    note : str
        A remark below the table.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    layers: Layers = field(default_factory=dict)
    narrow: Mapping[str, int] = field(default_factory=dict)
    budget: Budgeted | None = None
    start: str = "fresh"
    starts: int = 1
    trained: bool = True
    frozen: bool = False
    core_rate: float | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def made(self, dense: nn.Module | None, data: Data | None = None) -> nn.Module:
        """The network to train. It is derived from the trained dense network if the method starts from that.

        Parameters
        ----------
        dense : torch.nn.Module, optional
            The trained dense network.
        data : Data, optional
            What calibrated fits draw their inputs from.
        """
        model = self.build() if dense is None or self.start == "fresh" else copy.deepcopy(dense)
        if self.narrow:
            return narrowed(model, self.narrow)
        if self.start == "calibrated":
            assert data is not None  # who asks for a calibrated fit has inputs
            inputs = _drawn(data)
            return budgeted(model, self.budget, inputs) if self.budget else calibrated(model, self.layers, inputs)
        if self.layers:
            made = {"fresh": tensorized, "fit": compressed, "aligned": aligned}[self.start]
            model = made(model, self.layers)
        if self.frozen:
            for name in self.layers:
                model.get_submodule(name.removesuffix(".weight")).tnc_weight.requires_grad_(False)
        return model


CALIBRATION = 512
"""Training images that calibrated fits see."""


def _drawn(data: Data) -> list[torch.Tensor]:
    """Prepared images of the training split, the same for every row."""
    chosen = torch.randperm(len(data.train.y), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    return list(data.prepared(data.train.x[chosen]).split(64))


@dataclass(frozen=True)
class Study:
    """Methods that share a network, a data set and a schedule.

    Attributes
    ----------
    net, data : str
        Names of the network and of the data set.
    dense : (list of str, callable)
        Names of the weights that are replaced in the dense network, and a function that makes this network.
    methods : sequence of Method
    recipe : Recipe
    load : callable
        Returns the data.
    note : str
        A remark above the table.
    """

    net: str
    data: str
    dense: tuple[Sequence[str], Callable[[], nn.Module]]
    methods: Sequence[Method]
    recipe: Recipe
    load: Callable[[], Data]
    note: str = ""


# --------------------------------------------------------------------------------------------------- counts


def counted(study: Study) -> list[Row]:
    """The rows of a study without runs: exact numbers of parameters, computed from shapes alone."""
    names, build = study.dense
    with torch.device("meta"):
        dense = build()
        rows = [_count(method) for method in study.methods]
    total = sum(weight.numel() for weight in dense.parameters())
    replaced = sum(dense.get_parameter(name).numel() for name in names)
    found = []
    for method, (own, whole) in zip(study.methods, rows, strict=True):
        if method.layers or method.budget:  # what a format would not make smaller stays dense, and counts
            own = whole - (total - replaced)
        parameters = (
            {"replaced": replaced, "whole": total} if method.kind == "dense" else {"replaced": own, "whole": whole}
        )
        found.append(
            {"net": study.net, "data": study.data, "method": method.name, "kind": method.kind, **parameters}
            | {"dense_replaced": replaced, "dense_whole": total, "published": dict(method.published)}
            | {"note": method.note, "runs": []}
        )
    return found


def _count(method: Method) -> tuple[int, int]:
    model = method.build()
    if method.budget:
        dense = sum(weight.numel() for weight in matched(model, method.budget.weights).values())
        return method.budget.size, count(model)[1] - dense + method.budget.size
    if not method.narrow:
        return count(model, method.layers)
    model = narrowed(model, method.narrow)
    return weights_of(model, method.narrow), sum(weight.numel() for weight in model.parameters())


def stamp() -> Row:
    """Date, machine and versions of a run."""
    names: Iterable[str] = ("tncompress", "torch", "numpy")
    threads = torch.get_num_threads()
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU thread{'s' * (threads > 1)}"
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {place}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }
