"""Which plan runs at which size: priced for the device before any forward, looked up by the size in it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch

from tnc import cost, planner, splits
from tnc.backends import get
from tnc.contract import rebuilds, recipe
from tnc.cost import Device, device, seconds, step
from tnc.errors import TncError
from tnc.network import Network
from tnc.plans import Plan, Work
from tnc.typing import Shape

__all__ = ["EXECUTIONS", "Schedule", "check", "constants", "convolution", "linear", "lookup"]

EXECUTIONS = ("auto", "dense", "factorized")

_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_PLACES = _SIZES[2:]  # a feature map is never so small
_EXPORTED = 64
_SURE = 2.0
"""A convolution through its cores must look so much faster than the kept kernel: its price is the less certain one."""
_LIKELY = 1.2
"""A linear map likewise, and a convolution than the rebuilt kernel in training: predictions of equal times err."""
_IMAGE = 256


@dataclass(frozen=True)
class Schedule:
    """A plan for each range of sizes, or None where the weight is rebuilt (and, in inference, kept).

    Attributes
    ----------
    inference, training : tuple of (int, plan)
        The largest size of each range and its plan, ascending; the last plan serves everything larger.
    """

    inference: tuple[tuple[int, Any], ...] = ()
    training: tuple[tuple[int, Any], ...] = ()

    def plan(self, size: int, training: bool) -> Any:
        """The plan for so many inputs."""
        if not isinstance(size, int):  # `torch.export` with a dynamic batch: one program, without a case for each size
            size = _EXPORTED
        ranges = self.training if training else self.inference
        for largest, made in ranges[:-1]:
            if size <= largest:
                return made
        return ranges[-1][1] if ranges else None


def ranges(
    plans: Sequence[Any], same: Callable[[Any], Any], sizes: Sequence[int] = _SIZES
) -> tuple[tuple[int, Any], ...]:
    """Plans of `_SIZES` as ranges; neighbours that do the same are one: `torch.compile` makes a graph for each."""
    found: list[tuple[int, Any]] = []
    for size, made in zip(sizes, plans, strict=True):
        if found and same(found[-1][1]) == same(made):
            found[-1] = size, found[-1][1]
        else:
            found.append((size, made))
    return tuple(found)


def _steps(plan: Plan | None) -> Any:
    return plan and (plan.steps, plan.final)


def _parts(made: splits.Conv | None) -> Any:
    return made and (made.early, made.inner, _steps(made.before), _steps(made.middle), _steps(made.after))


def _last(made: planner.Rows | None) -> Any:
    return made and (made.groups, _steps(made.last))


def check(execution: str) -> None:
    """Raise a `TncError` unless `execution` is one of `EXECUTIONS`."""
    if execution not in EXECUTIONS:
        raise TncError(f"execution {execution!r} is unknown; there are {', '.join(EXECUTIONS)}")


def constants(place: torch.device) -> Device:
    """The cost constants of a torch device; round numbers for one that cannot be measured."""
    if place.type not in ("cpu", "cuda"):
        return Device()
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()
    label = f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return device(_backend(str(place)), label)


@lru_cache(maxsize=16)
def _backend(place: str) -> Any:
    return get(f"torch:{place}")


def _rebuilds(network: Network, execution: str) -> bool:
    return execution == "dense" or network.feed is not None or "*" in network.sizes


def _again(plan: Plan, rates: Device) -> float:
    """Time to make a plan's intermediates again for its backward pass: all but the last product."""
    return sum(step(work, rates) for work in plan.work[:-2])


@lru_cache(maxsize=1024)
def linear(network: Network, shape: Shape, execution: str, rates: Device) -> Schedule:
    """Plans for a linear map.

    In inference the weight may be kept, so that only a product is left of the dense way; in training it is rebuilt, and
    what a layer does not keep for the backward pass is computed again.
    """
    if rebuilds(network):
        return Schedule()
    inference, training = [], []
    for size in _SIZES:
        forth, back = (planner.linear(network, size, rates, grads) for grads in (False, True))
        product = step(Work(1, size, shape[0], shape[1], 0), rates)
        way = forth[0] or forth[1]
        assert way is not None  # a rebuild there always is
        fits = execution == "factorized" or (execution == "auto" and _LIKELY * way.seconds < product)
        inference.append(way.plan if fits else None)
        priced = [(way.seconds + _again(way.plan, rates), way.plan) for way in back if way]
        wanted = {"auto": priced, "factorized": priced[:1], "dense": priced[-1:]}[execution]
        training.append(min(wanted, key=lambda pair: pair[0])[1])
    kept = () if execution == "dense" else ranges(inference, _steps)
    return Schedule(kept, ranges(training, _steps))


@lru_cache(maxsize=1024)
def convolution(
    network: Network, shape: Shape, execution: str, rates: Device, transposed: bool, stretch: int
) -> Schedule:
    """Plans for a convolution, by images times places of the kernel.

    In inference a kernel that would be rebuilt is kept; in training it takes the memory of the dense weight.
    """
    if _rebuilds(network, execution):
        return Schedule()
    source, target = (0, 1) if transposed else (1, 0)
    kernel = prod(shape[2:])

    def chosen(size: int, training: bool) -> splits.Conv | None:
        extent = splits.Extent(max(1, size // _IMAGE), min(size, _IMAGE), stretch)
        made = splits.conv(network, extent, rates, training, transposed)
        if not made.early and not made.late:
            return None
        if training:
            cores = tuple(range(len(network.operands)))
            whole, sure = splits.planned(network, ((), cores, ()), extent, rates, training, transposed).seconds, _LIKELY
        else:
            whole, sure = cost.convolution(1, shape[target], shape[source], kernel, size, rates), _SURE
        return None if execution == "auto" and whole <= sure * made.seconds else made

    return Schedule(*(ranges([chosen(n, training) for n in _PLACES], _parts, _PLACES) for training in (False, True)))


@lru_cache(maxsize=1024)
def lookup(network: Network, execution: str, rates: Device) -> Schedule:
    """Plans for looking up rows, by their number; the table is rebuilt only where that is cheaper, and never kept."""
    if _rebuilds(network, execution):
        return Schedule()
    table = seconds(recipe(network).plan, rates)
    made = [planner.rows(network, size, rates) for size in _SIZES]
    plans = ranges([way if execution == "factorized" or way.seconds < table else None for way in made], _last)
    return Schedule(plans, plans)
