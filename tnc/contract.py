"""Rebuilding a weight from its cores, and applying the cores to inputs: networks on top of `tnc.plans`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from array_api_compat import array_namespace, device

from tnc.errors import PatternError
from tnc.network import Network
from tnc.plans import Plan, contract, plan, run
from tnc.typing import Array, Cores, Namespace, Shape

__all__ = [
    "ACTIVATIONS",
    "Plan",
    "activate",
    "apply",
    "contract",
    "crop",
    "dense",
    "fed",
    "pad",
    "plan",
    "rebuild",
    "rebuilds",
    "recipe",
    "run",
]

ACTIVATIONS = {
    "identity": lambda x, xp: x,
    "relu": lambda x, xp: xp.maximum(x, xp.zeros((), dtype=x.dtype, device=device(x))),
    "leaky_relu": lambda x, xp: xp.where(x > 0, x, 0.1 * x),
    "tanh": lambda x, xp: xp.tanh(x),
}
"""Elementwise functions of a feed, by name: ``f(x, xp)``."""


def activate(name: str, x: Array, xp: Namespace) -> Array:
    """Apply the activation called `name`."""
    if name not in ACTIVATIONS:
        raise PatternError(f"activation {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](x, xp)


class Recipe(NamedTuple):
    """How to rebuild a weight: plans of a network and of all networks that feed it, made once."""

    plan: Plan
    shape: Shape
    inner: Recipe | None = None
    activation: str = ""
    below: int = 0
    split: Shape = ()


@lru_cache(maxsize=4096)
def recipe(network: Network) -> Recipe:
    """The plans that rebuild a network; `rebuild` runs them."""
    own = plan(network.operands, network.outer, tuple(network.sizes.items()))
    if network.feed is None:
        return Recipe(own, network.shape)
    inner, split = network.feed.network, tuple(network.sizes[i] for i in network.operands[0])
    return Recipe(own, network.shape, recipe(inner), network.feed.activation, len(inner.core_shapes), split)


def rebuild(
    recipe: Recipe,
    cores: Cores,
    xp: Namespace,
    through: Callable[..., Array] | None = None,
    run: Callable[[Plan, Sequence[Array], Namespace], Array] = run,
) -> Array:
    """Run a recipe: its plans by `run`, the function of each fed network by `through`, plainly when omitted.

    The latter is an autograd checkpoint. Such a function gets the tensor that feeds it before the activation, so that
    a checkpoint keeps that one alone; where it is small there is nothing to save, and the function is called plainly.
    """
    if recipe.inner is None:
        return xp.reshape(run(recipe.plan, cores, xp), recipe.shape)
    inner = rebuild(recipe.inner, cores[: recipe.below], xp, through, run)

    def layer(inner: Array, *own: Array) -> Array:
        return xp.reshape(run(recipe.plan, [fed(recipe, inner, xp), *own], xp), recipe.shape)

    call = through if through and 2 * prod(recipe.split) >= prod(recipe.shape) else _plainly
    return call(layer, inner, *cores[recipe.below :])


def _plainly(layer: Callable[..., Array], *arrays: Array) -> Array:
    return layer(*arrays)


def _operands(network: Network, cores: Cores, xp: Namespace) -> list[Array]:
    """Arrays of a network's own operands: the fed tensor, where there is one, and its cores."""
    if network.feed is None:  # no look into the cache: `torch.compile` cannot trace it
        return list(cores)
    made = recipe(network)
    assert made.inner is not None
    return [fed(made, rebuild(made.inner, cores[: made.below], xp), xp), *cores[made.below :]]


def fed(recipe: Recipe, inner: Array, xp: Namespace) -> Array:
    """The first operand of a recipe: the inner network's tensor, activated and zero-padded."""
    flat = xp.reshape(activate(recipe.activation, inner, xp), (-1,))
    return xp.reshape(pad(flat, (prod(recipe.split),), xp), recipe.split)


def dense(network: Network, cores: Cores, shape: Shape | None = None, xp: Namespace | None = None) -> Array:
    """Rebuild the weight from its cores and cut off the padding.

    Parameters
    ----------
    network : Network
    cores : sequence of array
        Arrays of `network.core_shapes`.
    shape : tuple of int, optional
        The weight's shape; `network.shape` when omitted.
    """
    xp = array_namespace(*cores) if xp is None else xp
    return crop(rebuild(recipe(network), cores, xp), shape)


def crop(x: Array, shape: Shape | None) -> Array:
    """Cut the leading block of the given shape out of `x`; a view, and `x` itself where nothing is cut."""
    if shape is None or tuple(x.shape) == tuple(shape):
        return x
    return x[tuple(slice(0, n) for n in shape)]


@lru_cache(maxsize=4096)
def apply_plan(network: Network, batch: int) -> Plan:
    """Plan for contracting inputs with the cores: ``* n.. , cores -> * m..``."""
    rows = network.axes[0]
    columns = network.outer[len(rows) :]
    operands = (("*", *columns), *network.operands)
    return plan(operands, ("*", *rows), (("*", batch), *network.sizes.items()))


def apply(
    network: Network,
    cores: Cores,
    x: Array,
    shape: Shape | None = None,
    *,
    xp: Namespace | None = None,
    made: Plan | None = None,
    run: Callable[[Plan, Sequence[Array], Namespace], Array] = run,
) -> Array:
    """Compute ``x @ W.T`` from the cores, W being the weight as a matrix (first axis, all others).

    `x` has shape ``(..., columns)``; the result ``(..., rows)``. Where inputs cannot meet the cores (`rebuilds`), the
    weight comes first. `made` is a plan of `apply_plan`, looked up by the batch size when omitted; `run` runs it.
    """
    xp = array_namespace(x) if xp is None else xp
    shape = network.shape if shape is None else shape
    lead, rows = tuple(x.shape[:-1]), shape[0]
    if rebuilds(network):
        weight = xp.reshape(dense(network, cores, shape, xp), (rows, -1))
        return xp.matmul(x, xp.matrix_transpose(weight))
    if tuple(shape[1:]) != network.shape[1:]:
        x = xp.reshape(x, (-1, *shape[1:]))
        x = pad(x, (x.shape[0], *network.shape[1:]), xp)
    columns = network.outer[len(network.axes[0]) :]
    flat = xp.reshape(x, (-1, *(network.sizes[i] for i in columns)))
    operands = _operands(network, cores, xp)
    y = run(made or apply_plan(network, bucket(flat.shape[0])), [flat, *operands], xp)
    y = y if rows == network.shape[0] else xp.reshape(y, (-1, network.shape[0]))[:, :rows]
    return xp.reshape(y, (*lead, rows))


def rebuilds(network: Network) -> bool:
    """Whether inputs meet the rebuilt weight only: a batch index, or a feed that is no smaller than the weight."""
    if network.feed is None:
        return "*" in network.sizes
    return prod(network.feed.network.shape) >= prod(network.shape)


def bucket(batch: int) -> int:
    """Batch sizes up to the next power of two share a plan."""
    return 1 << max(0, int(batch) - 1).bit_length()


def pad(x: Array, shape: Shape, xp: Namespace | None = None) -> Array:
    """Append zeros along every axis up to `shape`; `x` itself where none are needed."""
    xp = array_namespace(x) if xp is None else xp
    for axis, size in enumerate(shape):
        missing = size - x.shape[axis]
        if missing:
            filler = (*x.shape[:axis], missing, *x.shape[axis + 1 :])
            x = xp.concat([x, xp.zeros(filler, dtype=x.dtype, device=device(x))], axis=axis)
    return x
