"""What rank policies are tried on: decompositions of every kind of topology, weights whose spectra fall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import tnc
from tnc import Decomposition, Network
from tnc.errors import RankError
from tnc.modes import balanced
from tnc.network import Feed


@dataclass(frozen=True)
class CP(Decomposition):
    """A hyperedge: fitted by least squares, its rank found by search."""

    def network(self, shape, rank):
        (a, b), (c, d) = balanced(shape[0], 2), balanced(shape[1], 2)
        return Network.of_rank("a r, b r, c r, d r -> (a b) (c d)", {"a": a, "b": b, "c": c, "d": d}, rank)


@dataclass(frozen=True)
class Even(Decomposition):
    """Ranks that are multiples of two: half of the bond passes through."""

    step = 2

    def network(self, shape, rank):
        if rank % 2 or rank < 1:
            raise RankError(f"rank {rank} is odd")
        sizes = {"m": shape[0], "n": (shape[1] + 1) // 2, "t": 2}
        return Network.of_rank("m t r, r n -> m (n t)", sizes, rank // 2)


@dataclass(frozen=True)
class Doubling(Decomposition):
    """The rank changes the topology: as many cores as its value."""

    def network(self, shape, rank):
        inner = [f"q{k}" for k in range(rank)]
        cores = [" ".join(pair) for pair in zip(["m", *inner], [*inner, "n"], strict=True)]
        return Network(", ".join(cores) + " -> m n", {"m": shape[0], "n": shape[1]} | dict.fromkeys(inner, 8))


@dataclass(frozen=True)
class Fed(Decomposition):
    """A network with a feed, which no spectrum describes."""

    def network(self, shape, rank):
        inner = Network("a r, r b -> a b", {"a": shape[0], "r": rank, "b": 2})
        return Network("m q, q n -> m n", {"m": shape[0], "q": 2, "n": shape[1]}, Feed(inner, "identity"))

    def fit(self, x, network, *, seed=0, metric=None):
        u, s, v = np.linalg.svd(x, full_matrices=False)
        cores = [np.zeros(shape, x.dtype) for shape in network.core_shapes]
        cores[0][:, 0], cores[1][0, 0], cores[2][0] = u[:, 0], 1, s[0] * v[0]
        return cores


def weight_of(shape, seed=0, power=1.0):
    """A matrix whose singular values fall like a power law, with structure of higher order on top."""
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return (u * (1.0 + np.arange(u.shape[1])) ** -power) @ v


PLUGINS = {
    "svd": tnc.decompositions["svd"](),
    "mpo": tnc.decompositions["mpo"](),
    "tucker": tnc.decompositions["tucker"](),
    "cp": CP(),
    "even": Even(),
    "doubling": Doubling(),
    "fed": Fed(),
}
plugins = pytest.mark.parametrize("plugin", PLUGINS.values(), ids=PLUGINS)
