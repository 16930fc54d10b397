"""Apply cores to inputs: ``x @ W.T`` without the weight W."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from array_api_compat import array_namespace

from tnc.contract.executor import Executor
from tnc.contract.padding import pad
from tnc.contract.plans import Plan
from tnc.contract.recipes import bounded, dense, fed, rebuild, recipe
from tnc.network import Network
from tnc.typing import Array, Cores, Shape

__all__ = ["apply", "rebuilds"]


def _operands(network: Network, cores: Cores, executor: Executor) -> list[Array]:
    """Arrays of a network's own operands: its cores, and in front of them the tensor of the feed if there is one."""
    if network.feed is None:  # before the cached `recipe`, which torch.compile cannot trace
        return list(cores)
    own = recipe(network)
    assert own.inner is not None
    inner = rebuild(own.inner, cores[: own.below], executor)
    return [fed(own, inner, executor.xp), *cores[own.below :]]


@lru_cache(maxsize=4096)
def apply_plan(network: Network, batch: int) -> Plan:
    """The plan to contract a batch of inputs with the cores: ``* n.. , cores -> * m..``."""
    rows = network.axes[0]
    columns = network.outer[len(rows) :]
    operands = (("*", *columns), *network.operands)
    return bounded(network, operands, ("*", *rows), {"*": batch, **network.sizes}, batch)


def apply(
    network: Network,
    cores: Cores,
    x: Array,
    shape: Shape | None = None,
    *,
    plan: Plan | None = None,
    executor: Executor | None = None,
) -> Array:
    """Compute ``x @ W.T`` from the cores. W is the weight as a matrix of shape (first axis, all other axes).

    The weight is rebuilt first if inputs cannot be contracted with the cores (see `rebuilds`).

    Parameters
    ----------
    network : Network
    cores : sequence of array
        Arrays of `network.core_shapes`.
    x : array
        Inputs, of shape ``(..., columns)``.
    shape : tuple of int, optional
        The weight's shape; `network.shape` when omitted.
    plan : Plan, optional
        The plan to contract inputs with cores; chosen by the number of inputs when omitted.
    executor : Executor, optional
        Runs the plan; one of the inputs' own array library when omitted.

    Returns
    -------
    array
        Of shape ``(..., rows)``.
    """
    executor = Executor(array_namespace(x)) if executor is None else executor
    xp = executor.xp
    shape = network.shape if shape is None else shape
    lead = tuple(x.shape[:-1])
    rows = shape[0]
    if rebuilds(network):
        weight = xp.reshape(dense(network, cores, shape, xp), (rows, -1))
        return xp.matmul(x, xp.matrix_transpose(weight))
    if tuple(shape[1:]) != network.shape[1:]:
        x = xp.reshape(x, (-1, *shape[1:]))
        x = pad(x, (x.shape[0], *network.shape[1:]), xp)
    columns = network.outer[len(network.axes[0]) :]
    flat = xp.reshape(x, (-1, *(network.sizes[i] for i in columns)))  # (*, n..)
    operands = _operands(network, cores, executor)
    y = executor.run(plan or apply_plan(network, bucket(flat.shape[0])), [flat, *operands])  # (*, m..)
    y = y if rows == network.shape[0] else xp.reshape(y, (-1, network.shape[0]))[:, :rows]
    return xp.reshape(y, (*lead, rows))


def rebuilds(network: Network) -> bool:
    """Whether to rebuild the weight first: it has a batch index, or the feed is at least as large as the weight."""
    if network.feed is None:
        return "*" in network.sizes
    return prod(network.feed.network.shape) >= prod(network.shape)


def bucket(batch: int) -> int:
    """The batch size to plan for: the next power of two."""
    return 1 << max(0, int(batch) - 1).bit_length()
