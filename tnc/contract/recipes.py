"""Rebuild a weight from its cores, with plans of a network and of the networks that feed it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import NamedTuple

from array_api_compat import array_namespace, device

from tnc.contract import bounds
from tnc.contract.executor import Executor
from tnc.contract.order import Indices
from tnc.contract.padding import crop, pad
from tnc.contract.plans import Plan, plan
from tnc.errors import PatternError
from tnc.network import Network
from tnc.typing import Array, Cores, Namespace, Shape

__all__ = ["ACTIVATIONS", "activate", "dense", "fed", "rebuild", "recipe"]

ACTIVATIONS = {
    "identity": lambda x, xp: x,
    "relu": lambda x, xp: xp.maximum(x, xp.zeros((), dtype=x.dtype, device=device(x))),
    "leaky_relu": lambda x, xp: xp.where(x > 0, x, 0.1 * x),
    "tanh": lambda x, xp: xp.tanh(x),
}
"""Elementwise functions of a feed, by name: ``f(x, xp)``."""


def activate(name: str, x: Array, xp: Namespace) -> Array:
    """Apply an activation.

    Parameters
    ----------
    name : str
        A key of `ACTIVATIONS`.
    x : array
        Of any shape. The result has the same.
    xp : namespace
        The array library.

    Raises
    ------
    PatternError
        There is no activation of that name.
    """
    if name not in ACTIVATIONS:
        raise PatternError(f"activation {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](x, xp)


class Recipe(NamedTuple):
    """How to rebuild a weight: the plans of a network and of all networks that feed it.

    Attributes
    ----------
    plan : Plan
        Contracts the operands of the network.
    shape : tuple of int
        Shape of the network.
    inner : Recipe or None
        Rebuilds the tensor of the feed, if there is one.
    activation : str
        The activation of the feed.
    below : int
        Number of cores of the feed. They are the first ones.
    split : tuple of int
        Shape of the first operand, which the feed makes.
    deep : bool
        Whether there are so many products in a row that gradients in half precision lose most digits. The recipe then
        runs in float32 at least.
    """

    plan: Plan
    shape: Shape
    inner: Recipe | None = None
    activation: str = ""
    below: int = 0
    split: Shape = ()
    deep: bool = False


_DEEP = 6
"""A network with more cores is deep. So is one with a feed."""


@lru_cache(maxsize=4096)
def recipe(network: Network) -> Recipe:
    """The plans that rebuild a network; `rebuild` runs them."""
    own = bounded(network, network.operands, network.outer, network.sizes)
    deep = network.feed is not None or len(network.operands) > _DEEP
    if network.feed is None:
        return Recipe(own, network.shape, deep=deep)
    inner = network.feed.network
    split = tuple(network.sizes[name] for name in network.operands[0])
    return Recipe(own, network.shape, recipe(inner), network.feed.activation, len(inner.core_shapes), split, deep)


def bounded(
    network: Network, operands: tuple[Indices, ...], output: Indices, sizes: Mapping[str, int], times: int = 1
) -> Plan:
    """Plan a contraction whose intermediates stay within the limit of `tnc.contract.bounds`, if there is one.

    Parameters
    ----------
    network : Network
        Its weight and its cores define the limit.
    operands : tuple of tuple of str
        Index names of every array.
    output : tuple of str
        Index names of the result.
    sizes : mapping of str to int
        Size of every index.
    times : int
        Factor of the limit, such as the number of inputs.

    Returns
    -------
    Plan
        The usual plan if its intermediates are within the limit, or if no other order of contraction is found.
    """
    pairs = tuple(sizes.items())
    most = times * bounds.allowed(network, network.shape)
    own = plan(operands, output, pairs)
    if own.peak > most and (path := bounds.path(operands, output, sizes, most)) is not None:
        return plan(operands, output, pairs, path=tuple(path))
    return own


def rebuild(recipe: Recipe, cores: Cores, executor: Executor, beside: int | None = None) -> Array:
    """Rebuild the weight of a recipe.

    Parameters
    ----------
    recipe : Recipe
    cores : sequence of array
        The cores of the feed come first.
    executor : Executor
        Runs the plans.
    beside : int, optional
        Number of entries that intermediates are compared with (see `Executor.run`); that of the weight when omitted.

    Returns
    -------
    array
        Of the network's shape, which may be larger than the weight's.
    """
    xp = executor.xp
    beside = beside or prod(recipe.shape)
    if recipe.deep and xp.finfo(dtype := cores[0].dtype).bits < 32:
        cores = [xp.astype(core, xp.float32) for core in cores]
        return xp.astype(rebuild(recipe, cores, executor, beside), dtype)
    if recipe.inner is None:
        return xp.reshape(executor.run(recipe.plan, cores, beside), recipe.shape)
    inner = rebuild(recipe.inner, cores[: recipe.below], executor, beside)

    def outer(inner: Array, *own: Array) -> Array:
        return xp.reshape(executor.run(recipe.plan, [fed(recipe, inner, xp), *own], beside), recipe.shape)

    if 2 * prod(recipe.split) < prod(recipe.shape):
        return outer(inner, *cores[recipe.below :])
    # The fed tensor is large. The function makes it from `inner`, so that it is not kept for the backward pass.
    return executor.call(outer, inner, *cores[recipe.below :])


def fed(recipe: Recipe, inner: Array, xp: Namespace) -> Array:
    """The first operand of a recipe: the tensor of the feed after its activation, padded with zeros.

    Parameters
    ----------
    recipe : Recipe
        A recipe with a feed.
    inner : array
        The tensor that ``recipe.inner`` rebuilds.
    xp : namespace
        The array library.

    Returns
    -------
    array
        Of shape ``recipe.split``.
    """
    flat = xp.reshape(activate(recipe.activation, inner, xp), (-1,))
    return xp.reshape(pad(flat, (prod(recipe.split),), xp), recipe.split)


def dense(network: Network, cores: Cores, shape: Shape | None = None, xp: Namespace | None = None) -> Array:
    """Rebuild a weight from its cores, and cut off the padding.

    Parameters
    ----------
    network : Network
    cores : sequence of array
        Arrays of `network.core_shapes`.
    shape : tuple of int, optional
        The weight's shape; `network.shape` when omitted.
    xp : namespace, optional
        The array library; that of the cores when omitted.

    Returns
    -------
    array
        Of the weight's shape.
    """
    xp = array_namespace(*cores) if xp is None else xp
    return crop(rebuild(recipe(network), cores, Executor(xp)), shape)
