"""How much the terms of a network cancel one another."""

from __future__ import annotations

from collections import Counter
from math import prod, sqrt

from array_api_compat import array_namespace

from tnc.contract.executor import contract
from tnc.network import Network
from tnc.typing import Cores

__all__ = ["terms"]


def terms(network: Network, cores: Cores) -> float | None:
    """Norm of all terms of a network.

    A term is a product of entries of all cores, one for each setting of all indices. The norm is the square root of the
    contraction of the squared cores. If terms cancel one another, it is much larger than the norm of the weight.
    Rounding the cores with unit roundoff `u` changes the weight by about ``sqrt(n_cores) u`` times this norm.

    Returns
    -------
    float or None
        None if the network has a feed: there are no terms behind an activation.
    """
    if network.feed is not None:
        return None
    xp = array_namespace(*cores)
    owners = Counter(name for core in network.operands for name in core)
    peaks = []
    operands = []
    squares = []
    for names, core in zip(network.operands, cores, strict=True):
        wide = xp.astype(core, xp.float64)
        peak = float(xp.max(xp.abs(wide))) or 1.0
        square = (wide / peak) ** 2  # squares of scaled entries do not overflow
        axes = tuple(axis for axis, name in enumerate(names) if owners[name] == 1)
        # Sum over the indices of this core alone: the contraction below has the shared indices only.
        squares.append(xp.sum(square, axis=axes) if axes else square)
        operands.append(tuple(name for name in names if owners[name] > 1))
        peaks.append(peak)
    return sqrt(float(contract(operands, (), squares))) * prod(peaks)
