"""A network, a data set and what is done to its large layers: counted, trained within a budget, scored once."""

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
"""One line of a table, as the JSON holds it; ``runs`` has one entry per seed and is empty where nothing ran."""


@dataclass(frozen=True)
class Method:
    """One way to write the large layers.

    Attributes
    ----------
    build : callable
        The network before anything is done to it.
    layers : Layers
        Formats by parameter; empty for the dense network.
    narrow : mapping
        Parameters allowed per layer for the control with fewer units.
    start : {"fresh", "fit", "aligned", "dense"}
        Fresh cores; cores fitted to the weights the dense network was trained to; fresh cores turned towards those
        weights; or no cores.
    trained, frozen : bool
        Whether the network is trained at all, and whether the cores are left as they were drawn.
    published : mapping
        What the paper has for this row: ``parameters``, ``accuracy``, ``factor``.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    layers: Layers = field(default_factory=dict)
    narrow: Mapping[str, int] = field(default_factory=dict)
    start: str = "fresh"
    trained: bool = True
    frozen: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def made(self, dense: nn.Module | None) -> nn.Module:
        """The network to train, from the trained dense one where the method starts there."""
        model = self.build() if dense is None or self.start == "fresh" else copy.deepcopy(dense)
        if self.narrow:
            return narrowed(model, self.narrow)
        if self.layers:
            made = {"fresh": tensorized, "fit": compressed, "aligned": aligned}[self.start]
            model = made(model, self.layers)
        if self.frozen:
            for name in self.layers:
                model.get_submodule(name.removesuffix(".weight")).cores.requires_grad_(False)
        return model


@dataclass(frozen=True)
class Study:
    """Methods that share network, data and schedule.

    Attributes
    ----------
    dense : (list of str, callable)
        Names of the replaced weights in the dense network, and that network.
    load : callable
        ``load(deadline)`` gives the data; what takes longer is left out where it can be.
    least : float
        Epochs below which a shortened schedule says nothing: then no row is run.
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
    """The rows of a study that has not run: exact counts, from shapes alone."""
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
    """The rows of a study, each as soon as all its seeds have run; as many steps for all as fit into the minutes.

    They are no more than `share` of the full schedule. Where that or the budget does not allow `least` epochs for every
    row and seed, nothing runs: the rows are those of `counted`.
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
    """Train with one seed; validation and, but for a trial, test are scored once, after the last step."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = method.made(dense).to(device())
    options = {"batch": study.recipe.batch, "augmented": study.recipe.augmented, "deadline": deadline}
    batches = Batches(data, data.train, steps=steps, seed=seed, **options)
    taken = fit(model, batches, study.recipe, rate, dense) if method.trained else 0
    seconds = time.perf_counter() - start
    scores = {"validation": accuracy(model, data, data.validation)}
    if not trial:
        scores["accuracy"] = accuracy(model, data, data.test)
    return model, {"seed": seed, **scores, "steps": taken, "seconds": round(seconds, 1)}


def _rate(study: Study, method: Method, dense: nn.Module | None, data: Data, steps: int, deadline: float) -> float:
    """The learning rate that does best on the validation split in a short schedule."""
    rates = study.recipe.rates
    if len(rates) == 1 or not method.trained:
        return rates[0]
    short = study.recipe.trial(steps)
    trials = (_one(study, method, dense, data, short, deadline, seed=0, rate=rate, trial=True) for rate in rates)
    scores = [run["validation"] for _, run in trials]
    return rates[scores.index(max(scores))]


def _affordable(study: Study, data: Data, seconds: float) -> int:
    """Steps for every row and seed such that all of them take so many seconds, by a few steps of each."""
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
    """When and on what a row was run."""
    names: Iterable[str] = ("tncompress", "torch", "numpy")
    threads = torch.get_num_threads()
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU thread{'s' * (threads > 1)}"
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {place}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }
