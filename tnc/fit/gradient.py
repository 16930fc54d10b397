"""Fits of networks with feeds by gradients, on any array library.

Elementwise functions between networks leave no linear problem to solve. So each step of Adam rebuilds the weight, and
goes back through the matrix products for the gradients. Only the scale of the whole weight is solved for exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import cos, inf, isfinite, pi, prod, sqrt
from typing import NamedTuple

from array_api_compat import array_namespace

from tnc.contract.executor import Executor
from tnc.contract.padding import crop, pad
from tnc.contract.recipes import Recipe, fed, recipe
from tnc.errors import PatternError
from tnc.fit.linalg import norm
from tnc.fit.metric import Metric
from tnc.network import Network
from tnc.typing import Array, Cores, Namespace, Shape

__all__ = ["SLOPES", "descend", "gradients", "scaled"]

SLOPES = {
    "identity": lambda x, y, xp: xp.ones_like(x),
    "relu": lambda x, y, xp: xp.astype(x >= 0, x.dtype),
    "leaky_relu": lambda x, y, xp: 0.1 + 0.9 * xp.astype(x >= 0, x.dtype),
    "tanh": lambda x, y, xp: 1 - y * y,
}
"""Derivatives of `tnc.contract.recipes.ACTIVATIONS`: ``f(x, y, xp)`` at `x`, where the activation has the value `y`.

At a kink the slope is one. Gates near the identity put most of their entries exactly there, and could not learn if it
were zero.
"""

_TAPE = 1 << 25
"""A network that moves more entries than this keeps no intermediates: they are computed again on the way back."""

_FIRST, _SECOND = 0.9, 0.999
"""Decay of Adam's means of the gradient and of its square."""

_SOLVED = 1e-12
"""Relative error at which a descent stops."""


def gradients(network: Network, cores: Cores, upstream: Callable[[Array], Array]) -> list[Array]:
    """Gradients of a loss with respect to the cores of any network, feeds included.

    Parameters
    ----------
    network : Network
    cores : sequence of array
        Arrays of `network.core_shapes`.
    upstream : callable
        Takes the rebuilt tensor, of `network.shape`, and returns the gradient of the loss with respect to it.

    Returns
    -------
    list of array
        One gradient for each core, of its shape.

    Raises
    ------
    PatternError
        An activation has no entry in `SLOPES`.
    """
    return _gradients(recipe(network), cores, upstream, array_namespace(*cores))


def _gradients(recipe: Recipe, cores: Cores, upstream: Callable[[Array], Array], xp: Namespace) -> list[Array]:
    if recipe.inner is None:
        return _both_ways(recipe, list(cores), upstream, xp)
    if recipe.activation not in SLOPES:
        raise PatternError(f"activation {recipe.activation!r} has no derivative; there are {', '.join(SLOPES)}")
    own: list[Array] = []

    def inner_upstream(inner: Array) -> Array:
        """The gradient with respect to the tensor of the inner network; those of the outer one's cores go to `own`."""
        activated = fed(recipe, inner, xp)  # the shape of the first operand
        gradient, *rest = _both_ways(recipe, [activated, *cores[recipe.below :]], upstream, xp)
        own.extend(rest)
        gradient, value = (_without_padding(y, inner.shape, xp) for y in (gradient, activated))
        return gradient * SLOPES[recipe.activation](inner, value, xp)

    return [*_gradients(recipe.inner, cores[: recipe.below], inner_upstream, xp), *own]


def _both_ways(recipe: Recipe, operands: list[Array], upstream: Callable[[Array], Array], xp: Namespace) -> list[Array]:
    """Gradients of the operands of one network: forward to its tensor, on to `upstream`, and back."""
    executor = Executor(xp)
    value, kept = executor.forward(recipe.plan, operands, 0 if recipe.plan.moved > _TAPE else inf)
    gradient = upstream(xp.reshape(value, recipe.shape))
    return executor.backward(recipe.plan, operands, kept, gradient, [True] * len(operands))


def _without_padding(y: Array, shape: Shape, xp: Namespace) -> Array:
    """The first entries of `y`, as an array of this shape. The other entries are the padding of a feed."""
    return xp.reshape(xp.reshape(y, (-1,))[: prod(shape)], shape)


def descend(
    x: Array,
    network: Network,
    cores: Cores,
    *,
    steps: int = 800,
    rate: float = 3e-2,
    tolerance: float = 1e-4,
    progress: Callable[[int, int, float], None] | None = None,
    metric: Metric | None = None,
) -> list[Array]:
    """Cores that minimize ``||c T(cores) - x||^2 / ||x||^2``, by Adam with a cosine schedule.

    The scale ``c = <T, x> / <T, T>`` is solved for at every step (variable projection). So the error is at most 1 for
    all cores. In the end the scale is multiplied into the cores of the outermost network. Entries of `T` beyond the
    shape of `x` do not count.

    Parameters
    ----------
    x : array
        The weight, of a shape that `network` holds.
    network : Network
        With or without a feed.
    cores : sequence of array
        The start, of `network.core_shapes`.
    steps : int
        Largest number of steps.
    rate : float
        Learning rate of Adam at the start.
    tolerance : float
        Stop when the error fell by less than this fraction over half of the steps.
    progress : callable, optional
        Called at every step with its number, the number of steps and the smallest relative error so far.
    metric : Metric, optional
        The norm in which the error is minimized.

    Returns
    -------
    list of array
        The best cores of all steps.

    Raises
    ------
    PatternError
        An activation has no entry in `SLOPES`.

    References
    ----------
    Kingma and Ba (2015); Golub and Pereyra (1973) for variable projection.
    """
    xp, size = array_namespace(x), sqrt(metric.energy(x)) if metric else norm(x)
    target = x / size if size else x
    shapes = [tuple(core.shape) for core in cores]
    flat = xp.concat([xp.reshape(core, (-1,)) for core in cores])  # all cores as one vector
    best, scale, kept = inf, 0.0, flat
    errors: list[float] = []  # the smallest so far, at every step
    window = max(steps // 2, 20)  # shorter would be wrong: from a nearly stationary start the error rises first
    first, second = xp.zeros_like(flat), xp.zeros_like(flat)
    for step in range(steps if size else 0):
        loss = _loss(target, network, _split(flat, shapes, xp), metric)
        if not isfinite(loss.error):
            break
        if loss.error < best:
            best, scale, kept = loss.error, loss.scale, flat
        errors.append(best)
        if progress is not None:
            progress(step + 1, steps, best)
        if best <= _SOLVED or _stands_still(errors, window, tolerance):
            break
        gradient = loss.gradient
        first = _FIRST * first + 0.1 * gradient
        second = _SECOND * second + 0.001 * gradient * gradient
        schedule = (1 + cos(pi * step / steps)) / 2
        rise = rate * schedule / (1 - _FIRST ** (step + 1))
        flat = flat - rise * first / (xp.sqrt(second / (1 - _SECOND ** (step + 1))) + 1e-8)
    return scaled(_split(kept, shapes, xp), network, scale * size)


def _stands_still(errors: Sequence[float], window: int, tolerance: float) -> bool:
    """Whether the error fell by less than the fraction `tolerance` over the last `window` steps."""
    return len(errors) > window and errors[-1] > (1 - tolerance) * errors[-1 - window]


class _Loss(NamedTuple):
    """Relative error at the best scale, that scale, and the gradient of half the squared error as one vector."""

    error: float
    scale: float
    gradient: Array


def _loss(target: Array, network: Network, cores: Cores, metric: Metric | None) -> _Loss:
    xp = array_namespace(target)
    results: list[Array] = []

    def upstream(whole: Array) -> Array:
        y = crop(whole, target.shape)
        image = metric.apply(y) if metric else y
        scale = xp.sum(image * target) / (xp.sum(image * y) + 1e-30)
        gap = scale * y - target
        weighed = metric.apply(gap) if metric else gap
        results.extend([xp.sum(gap * weighed), scale])
        return pad(scale * weighed, whole.shape, xp)

    parts = gradients(network, cores, upstream)
    gradient = xp.concat([xp.reshape(part, (-1,)) for part in parts])
    squared, scale = map(float, results)
    return _Loss(sqrt(max(squared, 0.0)), scale, gradient)


def _split(flat: Array, shapes: Sequence[Shape], xp: Namespace) -> list[Array]:
    """One vector as arrays of the given shapes."""
    ends = pairwise([0, *accumulate(map(prod, shapes))])
    return [xp.reshape(flat[a:b], shape) for (a, b), shape in zip(ends, shapes, strict=True)]


def scaled(cores: list[Array], network: Network, scale: float) -> list[Array]:
    """Multiply the rebuilt tensor by `scale`.

    The factor is divided evenly among the cores of the outermost network: the tensor is linear in each of them.

    Parameters
    ----------
    cores : list of array
    network : Network
    scale : float
    """
    below = len(network.feed.network.core_shapes) if network.feed else 0
    share = abs(scale) ** (1 / (len(cores) - below))
    own = [share * core for core in cores[below:]]
    return [*cores[:below], own[0] if scale >= 0 else -own[0], *own[1:]]
