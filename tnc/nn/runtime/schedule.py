"""The plan of a layer for each size of its input.

The plans are chosen once, before the first forward, by the cost model of the device. A forward only looks its plan up.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch

from tnc.backends import get
from tnc.contract import convolution as convolutions
from tnc.contract import cost, strategies
from tnc.contract import lookup as lookups
from tnc.contract.cost import Device, seconds, step
from tnc.contract.devices import device
from tnc.contract.inputs import rebuilds
from tnc.contract.plans import Plan, Work
from tnc.contract.recipes import recipe
from tnc.errors import TncError
from tnc.network import Network
from tnc.typing import Shape

__all__ = ["EXECUTIONS", "Ranges", "Schedule", "check", "constants", "convolution", "linear", "lookup"]

EXECUTIONS = ("auto", "dense", "factorized")

_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
"""Numbers of inputs (rows of a matrix) for which plans are chosen."""

_POSITION_SIZES = _SIZES[2:]
"""Numbers of images times positions for which convolutions are planned. Feature maps are not smaller than the first."""

_EXPORT_SIZE = 64
"""The size that stands for a batch of unknown size in an exported program."""

_CONVOLUTION_MARGIN = 2.0
"""How many times faster than the kept kernel the cores must be predicted to be. Predictions for convolutions are rough.
"""

_LINEAR_MARGIN = 1.2
"""The same for linear maps, and for convolutions against a rebuilt kernel. These predictions are more accurate."""

_IMAGE_POSITIONS = 256
"""Most positions of the kernel that one image is assumed to have; larger sizes are counted as more images."""


Ranges = tuple[tuple[int, Any], ...]
"""The largest size of each range and its plan, in ascending order. The last plan also serves all larger sizes."""


@dataclass(frozen=True)
class Schedule:
    """A plan for each range of sizes; None where the layer uses its dense weight.

    Attributes
    ----------
    inference : Ranges
        No gradients are recorded, and a rebuilt weight may be kept from call to call.
    training : Ranges
        Gradients are recorded.
    rebuilding : Ranges
        No gradients are recorded, but the weight cannot be kept: every call would rebuild it.
    """

    inference: Ranges = ()
    training: Ranges = ()
    rebuilding: Ranges = ()

    def plan(self, size: int, training: bool, kept: bool = True) -> Any:
        """The plan for an input of the given size.

        Parameters
        ----------
        size : int
            Number of inputs, or of images times positions for a convolution.
        training : bool
            Whether gradients are recorded.
        kept : bool
            Whether a rebuilt weight may be kept; used only where no gradients are recorded.

        Returns
        -------
        Plan, Conv or Rows, or None
            None where the layer uses its dense weight.
        """
        ranges = self.training if training else self.inference if kept else self.rebuilding
        # `torch.export` with a dynamic batch makes one program for all sizes. In its strict mode the size looks like
        # a plain int although it may change.
        if not isinstance(size, int) or (torch.compiler.is_dynamo_compiling() and torch.compiler.is_exporting()):
            size = _EXPORT_SIZE
        for largest, plan in ranges[:-1]:
            if size <= largest:
                return plan
        return ranges[-1][1] if ranges else None


def ranges(plans: Sequence[Any], key: Callable[[Any], Any], sizes: Sequence[int] = _SIZES) -> Ranges:
    """Join neighbouring sizes whose plans do the same: `torch.compile` makes a graph for each range.

    Parameters
    ----------
    plans : sequence of plans
        One for each size.
    key : callable
        What a plan does. Two plans with equal keys do the same.
    sizes : sequence of int
        In ascending order.
    """
    joined: list[tuple[int, Any]] = []
    for size, plan in zip(sizes, plans, strict=True):
        if joined and key(joined[-1][1]) == key(plan):
            joined[-1] = size, joined[-1][1]
        else:
            joined.append((size, plan))
    return tuple(joined)


def _steps(plan: Plan | None) -> Any:
    return plan and (plan.steps, plan.final)


def _convolution_steps(plan: convolutions.Conv | None) -> Any:
    return plan and (plan.early, plan.inner, _steps(plan.before), _steps(plan.middle), _steps(plan.after))


def _lookup_steps(plan: lookups.Rows | None) -> Any:
    return plan and (plan.groups, _steps(plan.last))


def check(execution: str) -> None:
    """Raise a `TncError` unless `execution` is one of `EXECUTIONS`."""
    if execution not in EXECUTIONS:
        raise TncError(f"execution {execution!r} is unknown; there are {', '.join(EXECUTIONS)}")


def constants(place: torch.device) -> Device:
    """The cost constants of a torch device. A device that is neither a CPU nor a CUDA GPU gets rough default values."""
    if place.type not in ("cpu", "cuda"):
        return Device()
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()
    label = f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return device(_backend(str(place)), label)


@lru_cache(maxsize=16)
def _backend(place: str) -> Any:
    return get(f"torch:{place}")


def _always_dense(network: Network, execution: str) -> bool:
    """Whether a convolution or a table always uses its dense weight."""
    return execution == "dense" or network.feed is not None or "*" in network.sizes


def _recomputing(plan: Plan, rates: Device) -> float:
    """Seconds to compute a plan's intermediates again for its backward pass: all but the last product."""
    return sum(step(work, rates) for work in plan.work[:-2])


@lru_cache(maxsize=1024)
def linear(network: Network, shape: Shape, execution: str, rates: Device) -> Schedule:
    """Plans for a linear map.

    In inference the dense weight may be kept, so that the dense way costs one product. In training the weight is
    rebuilt in each call. The intermediates that are not kept for the backward pass are computed a second time.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Shape (rows, columns) of the weight.
    execution : {"auto", "dense", "factorized"}
    rates : Device
        The cost constants of the device.
    """
    if rebuilds(network):
        return Schedule()
    inference, training, rebuilding = [], [], []
    for size in _SIZES:
        ways = strategies.linear(network, size, rates, False)
        training_ways = strategies.linear(network, size, rates, True)
        product = step(Work(1, size, shape[0], shape[1], 0), rates)
        way = ways[0] or ways[1]
        assert way is not None  # rebuilding the weight is always possible
        factorized = execution == "factorized" or (execution == "auto" and _LINEAR_MARGIN * way.seconds < product)
        inference.append(way.plan if factorized else None)
        training.append(
            _cheapest(execution, [(w.seconds + _recomputing(w.plan, rates), w.plan) for w in training_ways if w])
        )
        rebuilding.append(_cheapest(execution, [(w.seconds, w.plan) for w in ways if w]))
    if execution == "dense":
        return Schedule((), ranges(training, _steps))
    return Schedule(ranges(inference, _steps), ranges(training, _steps), ranges(rebuilding, _steps))


def _cheapest(execution: str, priced: list[tuple[float, Plan]]) -> Plan:
    """The cheapest plan that `execution` allows.

    `priced` has the seconds and the plan of each way: first through the cores, last through the rebuilt weight.
    """
    allowed = {"auto": priced, "factorized": priced[:1], "dense": priced[-1:]}[execution]
    return min(allowed, key=lambda pair: pair[0])[1]


@lru_cache(maxsize=1024)
def convolution(
    network: Network, shape: Shape, execution: str, rates: Device, transposed: bool, stretch: int, groups: int = 1
) -> Schedule:
    """Plans for a convolution; the size is the number of images times the positions of the kernel.

    In inference a rebuilt kernel is kept. In training a rebuilt kernel takes the memory of the dense weight.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Shape of the weight as torch stores it: two axes of channels, then the kernel.
    execution : {"auto", "dense", "factorized"}
    rates : Device
        The cost constants of the device.
    transposed : bool
        Whether the convolution is transposed.
    stretch : int
        Product of the strides.
    groups : int
        Groups of channels that are convolved separately.
    """
    if _always_dense(network, execution):
        return Schedule()
    source, target = (0, 1) if transposed else (1, 0)
    kernel = prod(shape[2:])
    out, into = (shape[axis] // (groups if axis == 0 else 1) for axis in (target, source))  # channels of one group

    def choose(size: int, training: bool, kept: bool) -> convolutions.Conv | None:
        extent = convolutions.Extent(max(1, size // _IMAGE_POSITIONS), min(size, _IMAGE_POSITIONS), stretch)
        plan = convolutions.conv(network, extent, rates, training, transposed, groups)
        if not plan.early and not plan.late:
            return None
        if kept:
            dense = cost.convolution(groups, out, into, kernel, size, rates)
            margin = _CONVOLUTION_MARGIN
        else:
            cores = tuple(range(len(network.operands)))
            rebuilt = convolutions.planned(network, ((), cores, ()), extent, rates, training, transposed, groups)
            dense = rebuilt.seconds
            margin = _LINEAR_MARGIN
        return None if execution == "auto" and dense <= margin * plan.seconds else plan

    def choices(training: bool, kept: bool) -> Ranges:
        plans = [choose(size, training, kept) for size in _POSITION_SIZES]
        return ranges(plans, _convolution_steps, _POSITION_SIZES)

    return Schedule(inference=choices(False, True), training=choices(True, False), rebuilding=choices(False, False))


@lru_cache(maxsize=1024)
def lookup(network: Network, execution: str, rates: Device) -> Schedule:
    """Plans for looking up rows of a table; the size is the number of rows.

    The table is rebuilt only where that is cheaper than looking up its rows. It is never kept.

    Parameters
    ----------
    network : Network
    execution : {"auto", "dense", "factorized"}
    rates : Device
        The cost constants of the device.
    """
    if _always_dense(network, execution):
        return Schedule()
    table = seconds(recipe(network).plan, rates)
    candidates = [lookups.rows(network, size, rates) for size in _SIZES]
    chosen = [plan if execution == "factorized" or plan.seconds < table else None for plan in candidates]
    plans = ranges(chosen, _lookup_steps)
    return Schedule(plans, plans, plans)
