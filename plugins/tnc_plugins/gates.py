"""Numbers for the brick wall of ADTN: where training starts, and how a tensor train becomes a layer of gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from array_api_compat import array_namespace

from tnc import Network
from tnc.contract import dense
from tnc.gradient import descend
from tnc.linalg import balance, like, norm, relative_error
from tnc.typing import Array

__all__ = ["deepen", "start", "widen"]

_WORK = 1 << 32
"""Entries of all layers and steps, times those of a gate's row: what a fit may cost unless it is told how long.

About half a minute on 2 cores.
"""


def start(network: Network, seed: int = 0, noise: float = 0.1) -> list[np.ndarray]:
    """Gates near the identity.

    Normal gates of variance one reach 1e45 after 16 layers, orthogonal ones die out under a ReLU; these keep the
    norm within a factor of three, and fit best.
    """
    rng = np.random.default_rng(seed)
    found = []
    for shape in network.core_shapes:
        inputs, outputs = prod(shape[2:]), prod(shape[:2])
        found.append(np.eye(outputs, inputs).reshape(shape) + noise * rng.standard_normal(shape))
    return found


def widen(cores: Sequence[Array], network: Network) -> list[Array]:
    """Cores of a first layer as the last gates of a network: the identity where the constant vectors do not reach.

    What the layers below hold, the identity, then feeds the constant vectors to them: the same weight, up to a scale.
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
    progress: Callable[[int, int, float], None] | None,
) -> list[Array]:
    """Gates of a deep network by gradient, never worse than its last layer alone, whose cores are `exact`."""
    gates = [like(gate, x) for gate in start(network, seed)]
    layers = len(gates) // len(exact)
    row = prod(network.core_shapes[-1][:2])
    steps = steps or min(800, max(20, _WORK // (layers * prod(network.shape) * row)))
    found = descend(x, network, gates, steps=steps, progress=progress)
    shallow = descend(x, network, widen(balance(exact, 1 / (norm(x) or 1.0)), network), steps=1)
    return min(shallow, found, key=lambda cores: relative_error(x, dense(network, cores, x.shape)))
