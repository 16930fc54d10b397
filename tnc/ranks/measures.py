"""What a budget counts: parameters, bytes, or operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod

from tnc.contract.inputs import apply_plan
from tnc.network import Network
from tnc.ranks.curves import Subject
from tnc.roles import AxisRoles

__all__ = ["MEASURES", "Measure"]


class Measure(ABC):
    """The size of a weight, dense and as a network."""

    @abstractmethod
    def dense(self, subject: Subject) -> int:
        """The size of the dense weight."""

    @abstractmethod
    def of(self, network: Network, subject: Subject) -> int:
        """The size of a network for the weight."""


class _Parameters(Measure):
    def dense(self, subject: Subject) -> int:
        return subject.size

    def of(self, network: Network, subject: Subject) -> int:
        return network.n_params


class _Bytes(Measure):
    def dense(self, subject: Subject) -> int:
        return subject.size * subject.itemsize

    def of(self, network: Network, subject: Subject) -> int:
        return network.n_params * subject.itemsize


class _Operations(Measure):
    """Multiplications and additions for each sample: through the cores, or through the rebuilt weight.

    A weight that is applied at several places of a sample (a convolution) counts as often.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def dense(self, subject: Subject) -> int:
        return round(2 * subject.size * subject.uses)

    def of(self, network: Network, subject: Subject) -> int:
        roles = subject.candidates[0].known(network, tuple(subject.x.shape))
        words = [name for axis in roles.axes for name in axis.names]
        if "kernel" in words and network.feed is None and "stack" not in words:
            each = _at_a_place(network, roles, self.batch * subject.uses)
        else:  # the planner merges cores first where that is faster, though it takes more operations
            each = min(apply_plan(network, self.batch).flops / self.batch, network.flops)
        return round(min(each, 2 * subject.size) * subject.uses)


def _at_a_place(network: Network, roles: AxisRoles, uses: float) -> float:
    """Operations of a convolution through its cores at one place; its kernel is made once for all places."""
    from tnc.contract.convolution import Extent, conv  # not needed to import tnc
    from tnc.contract.cost import Device

    words = [axis.names[-1] for axis in roles.axes]
    groups = next((axis.size for axis in roles.axes if "group" in axis.names), 1)
    plan = conv(network, Extent(1, 1), Device(), False, words.index("columns") < words.index("rows"), groups)
    out, into = plan.channels
    kernel = prod(network.shape[2:])
    middle = 2 * plan.folded * plan.groups * out * into * kernel
    return plan.before.flops + middle + plan.after.flops + plan.middle.flops / uses


MEASURES: dict[str, Callable[[int], Measure]] = {
    "parameters": lambda batch: _Parameters(),
    "bytes": lambda batch: _Bytes(),
    "flops": _Operations,
}
"""What a budget can count, by name; each is made for a batch."""
