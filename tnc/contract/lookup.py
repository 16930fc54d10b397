"""Plans for looking up rows of a factorized table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from tnc.contract.cost import Device, seconds
from tnc.contract.order import Indices
from tnc.contract.plans import Plan, plan
from tnc.contract.trees import MOST_OPERANDS
from tnc.network import Network

__all__ = ["Rows", "rows"]

_ITEMSIZE = 4
"""Bytes of an entry that is gathered: float32."""


class Rows(NamedTuple):
    """Plans to look up rows of a weight: merge groups of cores, gather along row indices, contract the results.

    Attributes
    ----------
    groups : tuple of (tuple of int, Plan)
        The cores of each group, and the plan that merges them. The merged tensor has its row indices first.
    digits : tuple of tuple of (int, int)
        For every group the (stride, size) of its row indices in the row number, most significant first.
    last : Plan
        Contracts the gathered groups to ``(batch, columns)``.
    seconds : float
        The time of a lookup.
    """

    groups: tuple[tuple[tuple[int, ...], Plan], ...]
    digits: tuple[tuple[tuple[int, int], ...], ...]
    last: Plan
    seconds: float


class _Group(NamedTuple):
    """A group of cores that are merged before their rows are gathered."""

    merge: Plan
    rows: Indices
    others: Indices


@lru_cache(maxsize=4096)
def rows(network: Network, batch: int, device: Device) -> Rows:
    """The cheapest way to look up rows. Neighbouring cores may be merged before their rows are gathered.

    Parameters
    ----------
    network : Network
        The network of a weight of shape ``(rows, columns)``.
    batch : int
        Number of rows to look up.
    device : Device

    Returns
    -------
    Rows
    """
    n = len(network.operands)
    every_core_alone = (True,) * (n - 1)
    cuts = product((False, True), repeat=n - 1) if n <= MOST_OPERANDS + 1 else [every_core_alone]
    candidates = [_rows(network, _spans(cut), batch, device) for cut in cuts]
    return min(candidates, key=lambda candidate: candidate.seconds)


def _spans(cut: Sequence[bool]) -> list[tuple[int, ...]]:
    """Runs of neighbouring cores. ``cut[k]`` says whether cores k and k + 1 are in different runs."""
    n = len(cut) + 1
    ends = [k + 1 for k, separate in enumerate(cut) if separate]
    return [tuple(range(start, end)) for start, end in zip([0, *ends], [*ends, n], strict=True)]


def _rows(network: Network, groups: Sequence[tuple[int, ...]], batch: int, device: Device) -> Rows:
    """The plans for these groups of cores, and their price."""
    lead = network.axes[0]
    columns = network.outer[len(lead) :]
    strides = {name: prod(network.sizes[later] for later in lead[k + 1 :]) for k, name in enumerate(lead)}
    merges = []
    digits = []
    operands: list[Indices] = []
    total = 0.0
    for cores in groups:
        group = _merge(network, cores)
        merges.append((cores, group.merge))
        digits.append(tuple((strides[name], network.sizes[name]) for name in group.rows))
        operands.append(("*", *group.others) if group.rows else group.others)
        total += seconds(group.merge, device) + _gathering(network, group, batch, device) + device.call
    used = {name for core in operands for name in core} - {"*"}
    last = plan(tuple(operands), ("*", *columns), (("*", batch), *_sizes(network, used)))
    return Rows(tuple(merges), tuple(digits), last, total + seconds(last, device))


def _merge(network: Network, cores: tuple[int, ...]) -> _Group:
    """The plan that merges some cores. Indices of no other core and of no axis of the weight are summed over."""
    operands = [network.operands[k] for k in cores]
    needed = set(network.outer)
    for k, core in enumerate(network.operands):
        if k not in cores:
            needed.update(core)
    names = [name for name in dict.fromkeys(name for core in operands for name in core) if name in needed]
    row_indices = tuple(name for name in names if name in network.axes[0])
    others = tuple(name for name in names if name not in network.axes[0])
    used = {name for core in operands for name in core}
    merge = plan(tuple(operands), (*row_indices, *others), _sizes(network, used))
    return _Group(merge, row_indices, others)


def _sizes(network: Network, used: set[str]) -> tuple[tuple[str, int], ...]:
    """Sizes of the used indices, in the order of the network."""
    return tuple((name, size) for name, size in network.sizes.items() if name in used)


def _gathering(network: Network, group: _Group, batch: int, device: Device) -> float:
    """Seconds to read and write the gathered rows of a group, of shape (batch, others)."""
    if not group.rows:
        return 0.0
    entries = batch * prod(network.sizes[name] for name in group.others)
    return 2 * _ITEMSIZE * entries / device.bytes
