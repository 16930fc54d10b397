"""Gradient fits of networks with feeds: Adam, and a reverse pass over the steps of a plan, on any array library.

Elementwise functions between networks leave nothing linear to solve for, so each step rebuilds the weight and walks
back through the matrix products. Only the scale of the whole is solved for, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import cos, inf, isfinite, pi, prod, sqrt

from array_api_compat import array_namespace

from tnc.adjoint import pull, push
from tnc.contract import Recipe, crop, fed, pad, recipe
from tnc.errors import PatternError
from tnc.linalg import norm
from tnc.network import Network
from tnc.typing import Array, Cores, Namespace, Shape

__all__ = ["SLOPES", "descend", "gradients"]

SLOPES = {
    "identity": lambda x, y, xp: xp.ones_like(x),
    "relu": lambda x, y, xp: xp.astype(x >= 0, x.dtype),
    "leaky_relu": lambda x, y, xp: 0.1 + 0.9 * xp.astype(x >= 0, x.dtype),
    "tanh": lambda x, y, xp: 1 - y * y,
}
"""Derivatives of `tnc.contract.ACTIVATIONS` at `x`, where they are `y`: ``f(x, y, xp)``.

At a kink the slope is one: gates near the identity put most of their entries exactly there, and have to learn.
"""

_TAPE = 1 << 25
"""A network that moves more entries than this makes its intermediates twice: only one keeps them at a time."""


def gradients(network: Network, cores: Cores, upstream: Callable[[Array], Array]) -> list[Array]:
    """Gradients of a loss with respect to the cores of any network, feeds included.

    Parameters
    ----------
    network : Network
    cores : sequence of array
    upstream : callable
        Takes the rebuilt tensor, of `network.shape`, and gives the gradient of the loss with respect to it.

    Raises
    ------
    PatternError
        An activation has no entry in `SLOPES`.
    """
    return _gradients(recipe(network), cores, upstream, array_namespace(*cores))


def _gradients(made: Recipe, cores: Cores, upstream: Callable[[Array], Array], xp: Namespace) -> list[Array]:
    own: list[Array] = []

    def layer(operands: list[Array]) -> list[Array]:
        """Forward through this network, on to whatever comes after, and back."""
        value, kept = push(made.plan, operands, xp, 0 if made.plan.moved > _TAPE else inf)
        gradient = upstream(xp.reshape(value, made.shape))
        return pull(made.plan, operands, kept, gradient, [True] * len(operands), xp)

    def after(inner: Array) -> Array:
        first = fed(made, inner, xp)
        gradient, *rest = layer([first, *cores[made.below :]])
        own.extend(rest)
        size = prod(inner.shape)  # what is beyond was padding
        gradient, value = (xp.reshape(xp.reshape(y, (-1,))[:size], inner.shape) for y in (gradient, first))
        return gradient * SLOPES[made.activation](inner, value, xp)

    if made.inner is None:
        return layer(list(cores))
    if made.activation not in SLOPES:
        raise PatternError(f"activation {made.activation!r} has no derivative; there are {', '.join(SLOPES)}")
    return [*_gradients(made.inner, cores[: made.below], after, xp), *own]


def descend(
    x: Array,
    network: Network,
    cores: Cores,
    *,
    steps: int = 800,
    rate: float = 3e-2,
    tolerance: float = 1e-4,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Array]:
    """Cores that minimize ``||c T(cores) - x||^2 / ||x||^2`` by Adam with a cosine schedule, from the given ones.

    The scale ``c = <T, x> / <T, T>`` is solved for at every step (variable projection): the error is at most 1
    whatever the cores, and ends up in the last network's own cores. Entries beyond `x`'s shape do not count. The
    best cores met are returned.

    Parameters
    ----------
    steps : int
        At most this many.
    rate : float
        Adam's learning rate at the start.
    tolerance : float
        Stop when the error fell by less than this fraction over half of the steps.
    progress : callable, optional
        Called at every step with its number, the number of steps and the relative error.

    References
    ----------
    Kingma and Ba (2015); Golub and Pereyra (1973) for variable projection.
    """
    xp, size = array_namespace(x), norm(x)
    target = x / size if size else x
    shapes = [tuple(core.shape) for core in cores]
    flat = xp.concat([xp.reshape(core, (-1,)) for core in cores])
    best, scale, kept, errors = inf, 0.0, flat, []
    window = max(steps // 2, 20)  # from a start that is nearly stationary it rises first
    first, second = xp.zeros_like(flat), xp.zeros_like(flat)
    for step in range(steps if size else 0):
        error, c, gradient = _loss(target, network, _split(flat, shapes, xp))
        if not isfinite(error):
            break
        if error < best:
            best, scale, kept = error, c, flat
        errors.append(best)
        if progress is not None:
            progress(step + 1, steps, best)
        before = errors[-1 - window] if len(errors) > window else inf
        if best > (1 - tolerance) * before or best <= 1e-12:
            break
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient * gradient
        rise = rate * (1 + cos(pi * step / steps)) / 2 / (1 - 0.9 ** (step + 1))
        flat = flat - rise * first / (xp.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    return _scaled(_split(kept, shapes, xp), network, scale * size)


def _loss(target: Array, network: Network, cores: Cores) -> tuple[float, float, Array]:
    """Relative error at the best scale, that scale, and the gradient of half the squared error, as one vector."""
    xp, found = array_namespace(target), []

    def upstream(whole: Array) -> Array:
        y = crop(whole, target.shape)
        scale = xp.sum(y * target) / (xp.sum(y * y) + 1e-30)
        gap = scale * y - target
        found.extend([xp.sum(gap * gap), scale])
        return pad(scale * gap, whole.shape, xp)

    parts = gradients(network, cores, upstream)
    gradient = xp.concat([xp.reshape(part, (-1,)) for part in parts])
    return sqrt(float(found[0])), float(found[1]), gradient


def _split(flat: Array, shapes: Sequence[Shape], xp: Namespace) -> list[Array]:
    """One vector as arrays of the given shapes."""
    ends = pairwise([0, *accumulate(map(prod, shapes))])
    return [xp.reshape(flat[a:b], shape) for (a, b), shape in zip(ends, shapes, strict=True)]


def _scaled(cores: list[Array], network: Network, scale: float) -> list[Array]:
    """Multiply the rebuilt tensor, shared evenly by the cores of the outermost network, which is linear in each."""
    fed = len(network.feed.network.core_shapes) if network.feed else 0
    share = abs(scale) ** (1 / (len(cores) - fed))
    own = [share * core for core in cores[fed:]]
    return [*cores[:fed], own[0] if scale >= 0 else -own[0], *own[1:]]
