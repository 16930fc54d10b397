"""A study: methods to replace the large layers of a network, counted, trained within a time budget and scored once."""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.papers.changes import Layers, aligned, compressed, count, narrowed, tensorized, weights_of
from benchmarks.papers.train import Batches, Data, Recipe, accuracy, device, fit, pace

__all__ = ["Method", "Row", "Study", "counted", "train"]

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
    start : {"fresh", "fit", "aligned", "dense"}
        How training starts: from random cores; from cores fitted to the weights of the trained dense network; from
        random cores aligned with those weights; or without cores.
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
    start: str = "fresh"
    trained: bool = True
    frozen: bool = False
    core_rate: float | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def made(self, dense: nn.Module | None) -> nn.Module:
        """The network to train. It is derived from the trained dense network if the method starts from that."""
        model = self.build() if dense is None or self.start == "fresh" else copy.deepcopy(dense)
        if self.narrow:
            return narrowed(model, self.narrow)
        if self.layers:
            made = {"fresh": tensorized, "fit": compressed, "aligned": aligned}[self.start]
            model = made(model, self.layers)
        if self.frozen:
            for name in self.layers:
                model.get_submodule(name.removesuffix(".weight")).tnc_weight.requires_grad_(False)
        return model


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
        ``load(deadline)`` returns the data. Optional parts that would not be ready by the deadline are left out.
    seeds : int
        Runs per method.
    note : str
        A remark above the table.
    least : float
        The smallest number of epochs of a shortened schedule. If the budget allows fewer, nothing is run.
    """

    net: str
    data: str
    dense: tuple[Sequence[str], Callable[[], nn.Module]]
    methods: Sequence[Method]
    recipe: Recipe
    load: Callable[[float], Data]
    seeds: int = 3
    note: str = ""
    least: float = 1.0


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
        if method.layers:  # what a format would not make smaller stays dense, and counts
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
    if not method.narrow:
        return count(model, method.layers)
    model = narrowed(model, method.narrow)
    return weights_of(model, method.narrow), sum(weight.numel() for weight in model.parameters())


# ------------------------------------------------------------------------------------------------- training


def train(study: Study, minutes: float, share: float = 1.0, say: Callable[[str], None] = print) -> Iterator[Row]:
    """Train a study, and yield each row as soon as all its seeds have run.

    All rows take the same number of steps: as many as fit into the time, but at most `share` of the full schedule. If
    time or share do not allow `study.least` epochs for every row and seed, nothing is run.

    Parameters
    ----------
    study : Study
    minutes : float
        Time budget.
    share : float
        Largest share of the full schedule.
    say : callable
        Called with messages about the progress.
    """
    start, rows = time.perf_counter(), counted(study)
    deadline = start + 60 * minutes
    data = study.load(start + 20 * minutes)
    full = study.recipe.steps(len(data.train.y))
    steps = min(max(1, round(share * full)), _affordable(study, data, deadline - time.perf_counter()))
    if steps < min(full, int(study.least * len(data.train.y) / study.recipe.batch)):
        too_few = f"{max(0, steps):,} steps are too few, a row needs {study.least:g} epochs"
        say(f"{study.net} on {study.data}: {too_few}: not run; a larger --budget or --share would give more")
        return
    schedule = {"schedule": str(study.recipe), "steps": steps, "full_steps": full, "budget_minutes": _finite(minutes)}
    dense: dict[int, nn.Module] = {}
    for method, row in zip(study.methods, rows, strict=True):
        if time.perf_counter() > deadline:
            say(f"{study.net} on {study.data}, {method.name}: no time left, not run")
            continue
        rate = _rate(study, method, dense.get(0), data, steps, deadline)
        for seed in range(study.seeds):
            if row["runs"] and time.perf_counter() > deadline:
                break  # fewer seeds, and the table says how many
            model, run = _one(study, method, dense.get(seed), data, steps, deadline, seed=seed, rate=rate)
            row["runs"].append(run)
            if method.kind == "dense":
                dense[seed] = model
            say(f"{study.net} on {study.data}, {method.name}, seed {seed}: {run}")
        yield row | schedule | {"rate": rate} | stamp()


def _one(
    study: Study,
    method: Method,
    dense: nn.Module | None,
    data: Data,
    steps: int,
    deadline: float,
    *,
    seed: int,
    rate: float,
    trial: bool = False,
) -> tuple[nn.Module, Row]:
    """Train with one seed. After the last step, validation is scored, and except in a trial also the test split."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = method.made(dense).to(device())
    options = {"batch": study.recipe.batch, "augmented": study.recipe.augmented, "deadline": deadline}
    batches = Batches(data, data.train, steps=steps, seed=seed, **options)
    taken = fit(model, batches, study.recipe, rate, dense, method.core_rate) if method.trained else 0
    seconds = time.perf_counter() - start
    scores = {"validation": accuracy(model, data, data.validation)}
    if not trial:
        scores["accuracy"] = accuracy(model, data, data.test)
    return model, {"seed": seed, **scores, "steps": taken, "seconds": round(seconds, 1)}


def _rate(study: Study, method: Method, dense: nn.Module | None, data: Data, steps: int, deadline: float) -> float:
    """The learning rate with the best accuracy on the validation split after a short schedule."""
    rates = study.recipe.rates
    if len(rates) == 1 or not method.trained:
        return rates[0]
    short = study.recipe.trial(steps)
    trials = (_one(study, method, dense, data, short, deadline, seed=0, rate=rate, trial=True) for rate in rates)
    scores = [run["validation"] for _, run in trials]
    return rates[scores.index(max(scores))]


def _affordable(study: Study, data: Data, seconds: float) -> int:
    """Steps per row and seed such that all of them together take `seconds`, estimated from a few steps of each row."""
    if seconds == math.inf:
        return 10**12
    per_step = fixed = 0.0
    dense: nn.Module | None = None
    scored = (len(data.validation.y) + len(data.test.y)) / study.recipe.batch
    for method in study.methods:
        start = time.perf_counter()
        model = method.made(dense).to(device())
        making, step = time.perf_counter() - start, 0.0
        dense = model if method.kind == "dense" else dense
        if method.trained or method.kind == "dense":
            step = pace(model, data, study.recipe, dense)
        per_step += step * method.trained
        fixed += making + step * scored / 2
    trials = len(study.recipe.rates) if len(study.recipe.rates) > 1 else 0
    left = seconds - fixed * (study.seeds + trials)
    return study.recipe.affordable(left / (1.1 * per_step), study.seeds) if per_step else 10**12


def _finite(minutes: float) -> float | None:
    return None if minutes == math.inf else round(minutes, 1)


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
