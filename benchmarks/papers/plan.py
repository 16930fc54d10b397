"""What a run would take: seconds per step as they were measured, or from the multiplications of the dense network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.papers.study import Method, Row, Study
from benchmarks.papers.work import Terms

__all__ = ["LONG", "SEEDS", "Cost", "cost", "multiplications", "pace_of", "seeds"]

SPEED = 1.5e10
"""Multiplications per second of one thread: what the measured rows of ResNet-32 come to."""
LONG = 40.0
"""Minutes from which on a row has one seed."""
SEEDS = 3
"""Seeds of a row that takes less."""
SHAPES = {
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "cifar10-features": (512,),
    "cifar10-maps": (2048,),
}
"""Shape of one example."""
SIZES = {"mnist": 54_000, "cifar10": 45_000, "cifar100": 45_000, "cifar10-features": 90_000, "cifar10-maps": 90_000}
"""Examples to train on, after the split; features with their augmented copy."""


class Cost(NamedTuple):
    """Steps of a run, its minutes without the choice of a rate, and minutes of all seeds with it.

    `measured` says whether a row of this network was timed; if not, the minutes are an estimate.
    """

    steps: int
    minutes: float
    total: float
    measured: bool


def multiplications(study: Study) -> float:
    """Multiplications of one forward pass of the dense network for one example; nan for data of unknown shape.

    Convolutions and linear layers count. A row with other layers is taken to cost as much.
    """
    return _multiplications(study.dense[1], SHAPES[study.data]) if study.data in SHAPES else float("nan")


@cache
def _multiplications(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> float:
    total = 0.0

    def count(layer: Any, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += float(layer.weight[0].numel() * output[0].numel())

    with torch.device("meta"), torch.inference_mode():
        model = build().eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        model(torch.zeros(1, *shape))
    return total


def pace_of(row: Row) -> float | None:
    """Seconds per step on a CPU of a row that was run or begun, if its steps took any."""
    if "CPU" not in row.get("machine", "CPU"):
        return None
    timed = [run["seconds"] / run["steps"] for run in row["runs"] if run["steps"] and run["seconds"]]
    return fmean(timed) if timed else row.get("seconds_per_step")


def seeds(minutes: float) -> int:
    """How many seeds a row has whose run takes so many minutes."""
    return SEEDS if minutes < LONG else 1


def cost(study: Study, method: Method, terms: Terms, rows: Mapping[str, Row]) -> Cost:
    """What a row takes.

    Parameters
    ----------
    study : Study
    method : Method
        One of its methods.
    terms : Terms
    rows : mapping of str to Row
        The study's rows of earlier runs by the names of methods, for the seconds of a step.
    """
    recipe = terms.recipe(study)
    steps = terms.steps(study, SIZES.get(study.data, recipe.batch))
    if not method.trained:
        return Cost(0, 0.0, 0.0, True)
    paces = {name: pace for name, row in rows.items() if (pace := pace_of(row))}
    if paces and not terms.gpu:  # a CPU's seconds say nothing about a GPU's
        second, measured = paces.get(method.name, fmean(paces.values())), True
    else:
        passes = 3 + recipe.taught  # forward, twice as much backward, and the teacher's forward pass
        second, measured = passes * recipe.batch * multiplications(study) / SPEED, False
    minutes = second * steps / 60
    trials = len(recipe.rates) * recipe.trial(steps) if len(recipe.rates) > 1 else 0
    return Cost(steps, minutes, minutes * seeds(minutes) + second * trials / 60, measured)
