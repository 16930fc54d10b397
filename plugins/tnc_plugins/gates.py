"""Values of the gates of ADTN: random starts, a tensor train as a layer of gates, and the fit by gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import numpy as np
from array_api_compat import array_namespace

from tnc import Network
from tnc.contract import dense
from tnc.fit.gradient import descend
from tnc.fit.linalg import balance, like, norm, relative_error
from tnc.typing import Array, Shape

__all__ = ["Progress", "deepen", "orthogonal", "start", "widen"]

Progress: TypeAlias = Callable[[int, int, float], None] | None
"""A function of the step, the number of steps and the error."""

_WORK = 1 << 32
"""Cost limit of a fit with no stated number of steps: layers times steps times entries times a gate's row size.

It takes about half a minute on 2 cores.
"""


def start(network: Network, seed: int = 0, noise: float = 0.1) -> list[np.ndarray]:
    """Random gates near the identity.

    They change the norm by less than a factor of three, and give the best fits. With normal gates of variance one the
    values reach 1e45 after 16 layers. Orthogonal ones, from which training starts, give worse fits.

    Parameters
    ----------
    network : Network
    seed : int
    noise : float
        Standard deviation of the noise that is added to the identity.
    """
    rng = np.random.default_rng(seed)
    gates = []
    for shape in network.core_shapes:
        inputs, outputs = prod(shape[2:]), prod(shape[:2])
        gates.append(np.eye(outputs, inputs).reshape(shape) + noise * rng.standard_normal(shape))
    return gates


def orthogonal(network: Network, seed: int = 0) -> list[np.ndarray]:
    """Random orthogonal gates; those on constant vectors are random with norm one.

    For training from scratch. Such gates spread the norm of the weight over its entries. Gaussian gates put it into
    few of them: the kurtosis of the entries is ten times as large, and training ends lower.

    Parameters
    ----------
    network : Network
    seed : int
    """
    rng = np.random.default_rng(seed)
    return [_orthogonal(shape, rng) for shape in network.core_shapes]


def _orthogonal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """One gate: orthonormal columns, or rows if there are fewer of them."""
    rows, columns = prod(shape[:2]), prod(shape[2:])
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without this, it would not be uniform over all such matrices
    return (q if rows >= columns else q.T).reshape(shape)


def widen(cores: Sequence[Array], network: Network) -> list[Array]:
    """All gates of a network whose last layer has the values of a first layer, with the same weight up to a scale.

    The layers below are the identity, so that they pass the constant vectors on to the last layer. The entries of its
    gates that the constant vectors do not use are those of the identity.
    """
    xp, gates = array_namespace(*cores), [like(gate, cores[0]) for gate in start(network, noise=0.0)]
    idle, gates = gates[: -len(cores)], gates[-len(cores) :]
    for k, core in enumerate(cores):
        flat = xp.reshape(gates[k], (*core.shape, -1))
        flat = xp.concat([core[..., None], flat[..., 1:]], axis=-1)
        gates[k] = xp.reshape(flat, gates[k].shape)
    return [*idle, *gates]


def deepen(
    x: Array,
    network: Network,
    exact: Sequence[Array],
    *,
    seed: int,
    steps: int | None,
    progress: Progress,
) -> list[Array]:
    """Fit the gates of a deep network by gradient. The error is never above that of its last layer alone.

    Parameters
    ----------
    x : array
        The weight.
    network : Network
    exact : sequence of array
        Cores of the fit with one layer.
    seed : int
    steps : int or None
        Number of steps; with None it follows from the size of the weight.
    progress : Progress
    """
    gates = [like(gate, x) for gate in start(network, seed)]
    layers = len(gates) // len(exact)
    row = prod(network.core_shapes[-1][:2])
    steps = steps or min(800, max(20, _WORK // (layers * prod(network.shape) * row)))
    deep = descend(x, network, gates, steps=steps, progress=progress)
    shallow = descend(x, network, widen(balance(exact, 1 / (norm(x) or 1.0)), network), steps=1)
    return min(shallow, deep, key=lambda cores: relative_error(x, dense(network, cores, x.shape)))
