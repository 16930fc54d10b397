"""When to contract the input with the cores, and when to rebuild the weight first: decided before any forward."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

from tnc.contract import Plan, apply_plan, recipe
from tnc.errors import TncError
from tnc.network import Network
from tnc.typing import Shape

__all__ = ["EXECUTIONS", "Schedule", "schedule"]

EXECUTIONS = ("auto", "dense", "factorized")

# Seconds a FLOP and a kernel call take, order of magnitude on a CPU core: only their ratio matters here.
_FLOP, _CALL = 2e-11, 1e-5
_EXPORTED = 64


@dataclass(frozen=True)
class Schedule:
    """Contract the input with the cores for batches up to `limit`, rebuild the weight above.

    Attributes
    ----------
    limit : float
        Batch size; 0 always rebuilds, infinity never.
    plans : tuple of (int, Plan)
        Plans by the largest batch each serves, ascending.
    """

    limit: float
    plans: tuple[tuple[float, Plan], ...]

    def plan(self, batch: int) -> Plan | None:
        """The plan for a batch, or None where the weight should be rebuilt."""
        if not isinstance(batch, int):  # `torch.export` with a dynamic batch: one program, without a case for each size
            batch = _EXPORTED
        if batch > self.limit:
            return None
        for largest, plan in self.plans:
            if batch <= largest:
                return plan
        return None


def schedule(network: Network, shape: Shape, execution: str) -> Schedule:
    """Decide how a linear map of this network runs, from shapes only.

    Raises
    ------
    TncError
        `execution` is not one of `EXECUTIONS`.
    """
    if execution not in EXECUTIONS:
        raise TncError(f"execution {execution!r} is unknown; there are {', '.join(EXECUTIONS)}")
    if execution == "dense" or network.feed is not None or "*" in network.sizes:
        return Schedule(0, ())
    plans = tuple((largest, apply_plan(network, batch)) for largest, batch in ((8, 4), (256, 64), (inf, 1024)))
    if execution == "factorized":
        return Schedule(inf, plans)
    limit = 0.0
    for batch in (1 << k for k in range(21)):
        plan = next(plan for largest, plan in plans if batch <= largest)
        if _seconds(plan, batch, apply_plan(network, 1)) > _dense(network, shape, batch):
            break
        limit = batch if batch < 1 << 20 else inf
    return Schedule(limit, plans)


def _seconds(plan: Plan, batch: int, single: Plan) -> float:
    return batch * single.flops * _FLOP + len(plan.steps) * _CALL


def _dense(network: Network, shape: Shape, batch: int) -> float:
    again = recipe(network).plan
    return (again.flops + 2 * batch * prod(shape)) * _FLOP + (len(again.steps) + 1) * _CALL
