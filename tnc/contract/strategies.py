"""Plans of linear maps with their prices: the candidates, and the cheapest on a device.

A linear map may contract the input with its cores one after another, merge some cores first, or rebuild the weight. All
of these are contraction trees, priced by `tnc.contract.cost`. Embeddings are planned in `tnc.contract.lookup`, and
convolutions in `tnc.contract.convolution`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from tnc.contract.cost import Device, seconds
from tnc.contract.order import Indices, find, is_chain
from tnc.contract.plans import Plan, plan
from tnc.contract.trees import MOST_OPERANDS, Path, all_trees, contiguous, multiplications, sequential
from tnc.network import Network

__all__ = ["Choice", "linear"]

_SHORTLIST = 6
"""Number of trees that are planned: those of fewest multiplications."""

_DP_OPERANDS = 10
"""Most operands for which dynamic programming over all sets of them looks for the fewest multiplications.

Its time grows exponentially. On chains and rings it is fast at any length.
"""


class Choice(NamedTuple):
    """A plan and its price.

    Attributes
    ----------
    plan : Plan
    seconds : float
    """

    plan: Plan
    seconds: float


class _Problem(NamedTuple):
    """A contraction whose first operand is the input. The others are the cores."""

    operands: tuple[Indices, ...]
    output: Indices
    size: dict[str, int]

    def plan(self, optimize: str = "auto", path: Path | None = None) -> Plan:
        return plan(self.operands, self.output, tuple(self.size.items()), optimize, path)


def _merges_cores_first(path: Path, n: int) -> bool:
    """Whether the first of `n` operands (the input) is contracted in the last step only."""
    position = 0  # of the input in the list of operands that are left
    for step, (i, j) in enumerate(path):
        if position in (i, j):
            return step == n - 2
        position -= (i < position) + (j < position)
    return True


def _small_trees(problem: _Problem, rebuild: bool) -> list[Path]:
    """Of all trees of few operands, those of fewest multiplications that rebuild the weight, or that do not."""
    operands, output, size = problem
    n = len(operands)
    candidates = [path for path in all_trees(n) if _merges_cores_first(path, n) == rebuild]
    return sorted(candidates, key=lambda path: multiplications(operands, output, size, path))[:_SHORTLIST]


def _through_cores(problem: _Problem) -> list[Plan]:
    """Plans worth a price in which the input meets a core before the weight is rebuilt."""
    operands, output, size = problem
    n = len(operands)
    if n <= MOST_OPERANDS:
        return [problem.plan(path=path) for path in _small_trees(problem, rebuild=False)]
    plans = [problem.plan(path=path) for path in sequential(n)]
    plans.append(problem.plan())  # "auto" prefers small intermediates, "dp" few multiplications
    if n <= _DP_OPERANDS or is_chain(operands[1:], (*operands[0], *output)):
        plans.append(problem.plan("dp"))
    else:
        plans += [problem.plan(path=path) for path in contiguous(operands, output, size)]
    return plans


def _through_weight(problem: _Problem) -> list[Plan]:
    """Plans worth a price that rebuild the weight and then multiply the input by it."""
    operands, output, size = problem
    paths = _small_trees(problem, rebuild=True) if len(operands) <= MOST_OPERANDS else []
    if not paths:
        outer = {*operands[0], *output} - {"*"}
        weight = tuple(sorted({name for core in operands[1:] for name in core} & outer))
        pairs = find(operands[1:], weight, dict(size))
        paths = [(*((i + 1, j + 1) for i, j in pairs), (0, 1))]
    return [problem.plan(path=path) for path in paths]


def _cheapest(plans: list[Plan], device: Device, training: bool) -> Choice | None:
    priced = [Choice(candidate, seconds(candidate, device, training=training)) for candidate in plans]
    return min(priced, key=lambda choice: choice.seconds, default=None)


@lru_cache(maxsize=4096)
def linear(network: Network, batch: int, device: Device, training: bool = False) -> tuple[Choice | None, Choice | None]:
    """The cheapest plans for ``* n.. , cores -> * m..``.

    Parameters
    ----------
    network : Network
        The network of the weight: its first axis has the rows `m`, all others the columns `n`.
    batch : int
        Number of inputs, the size of ``*``.
    device : Device
    training : bool
        Whether the price includes the backward pass.

    Returns
    -------
    Choice or None, Choice or None
        The cheapest plan that contracts the input with the cores, and the cheapest that rebuilds the weight first. The
        first is None for a network of one core.
    """
    rows = network.axes[0]
    columns = network.outer[len(rows) :]
    problem = _Problem((("*", *columns), *network.operands), ("*", *rows), {"*": batch, **network.sizes})
    through_cores = _cheapest(_through_cores(problem), device, training)
    return through_cores, _cheapest(_through_weight(problem), device, training)
