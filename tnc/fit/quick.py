"""Fits of one start and few sweeps, to predict errors: how small one becomes, not the best cores."""

from __future__ import annotations

from array_api_compat import array_namespace

from tnc.fit import gradient
from tnc.fit.calibrated import whitened_cores
from tnc.fit.least_squares import descend
from tnc.fit.linalg import balance, divided, norm
from tnc.fit.metric import Metric
from tnc.fit.metric_sweep import Weights
from tnc.fit.starts import random_cores
from tnc.fit.trees import tree_svd
from tnc.fit.unfolding import tensorize
from tnc.network import Network
from tnc.typing import Array

__all__ = ["quick"]

_SWEEPS, _METRIC_SWEEPS, _STEPS = 40, 4, 60
"""Sweeps without a metric, which are twenty times as fast; sweeps in a metric; steps of networks with a feed."""

_TOLERANCE = 1e-3
"""Sweeps end when they lower the error by less than this fraction."""


def quick(x: Array, network: Network, metric: Metric | None = None, *, seed: int = 0) -> list[Array]:
    """Cores after one start and few sweeps, which predict the error that many reach.

    Trees start from truncated SVDs of the weight times the root of the metric. Other networks start from noise and are
    swept without the metric first. On kernels of trained networks the error is then about a twentieth above that after
    many sweeps in the metric.

    Parameters
    ----------
    x : array
        The weight, float32 or float64.
    network : Network
    metric : Metric, optional
        The norm of the error.
    seed : int
        Seed of the starts.

    Returns
    -------
    list of array
        Of `network.core_shapes`.
    """
    size = norm(x)
    if not size:
        return [0 * core for core in random_cores(x, network, seed)]
    unit = divided(x, size)
    if network.feed is not None:
        start = random_cores(unit, network, seed)
        metric = metric.normalized().like(x) if metric else None
        cores = gradient.descend(unit, network, start, steps=_STEPS, metric=metric)
        return gradient.scaled(cores, network, size)
    cores = _swept(unit, network, metric, seed)
    return [array_namespace(x).astype(core, x.dtype, copy=False) for core in balance(cores, size)]


def _swept(x: Array, network: Network, metric: Metric | None, seed: int) -> list[Array]:
    """Cores for a weight of norm 1."""

    def start(y: Array) -> list[Array]:
        if network.is_tree:
            return tree_svd(y, network, seed=seed)[0]
        noise = random_cores(y, network, seed)
        cores = descend(tensorize(y, network), network, noise, _SWEEPS, _TOLERANCE).cores
        return [array_namespace(y).astype(core, y.dtype) for core in cores]

    if metric is None:
        return start(x)
    metric = metric.normalized()
    cores, exact = whitened_cores(x, network, metric, start) if network.is_tree else (start(x), False)
    if exact:
        return cores
    weights = Weights.of(x, network, metric.like(x))
    return descend(x, network, balance(cores), _METRIC_SWEEPS, _TOLERANCE, weights=weights).cores
