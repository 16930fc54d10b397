"""A decomposition that conforms, and others each broken in one way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tnc import Decomposition, Network
from tnc.errors import RankError, WeightError


@dataclass(frozen=True)
class Good(Decomposition):
    """A truncated SVD, the base of everything broken below."""

    scale: int = 1

    def network(self, shape, rank):
        if len(shape) != 2:
            raise WeightError("matrices only")
        return Network.of_rank("m r, r n -> m n", {"m": shape[0], "n": shape[1]}, rank)


class Thawed(Good):
    """Not a frozen dataclass of its own, and unequal to a copy."""

    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__


class Bare(Decomposition):
    def network(self, shape, rank):
        return Good().network(shape, rank)


@dataclass
class Melting(Decomposition):
    def network(self, shape, rank):
        return Good().network(shape, rank)


@dataclass(frozen=True)
class Unhashable(Good):
    factors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Impure(Good):
    calls: dict[int, int] = field(default_factory=dict, hash=False, compare=False)

    def network(self, shape, rank):
        self.calls[len(self.calls)] = 1
        return super().network(shape, min(rank + len(self.calls), 9) if rank else 0)


@dataclass(frozen=True)
class Small(Good):
    def network(self, shape, rank):
        return super().network((shape[0] - 1, *shape[1:]), rank)


@dataclass(frozen=True)
class Flat(Good):
    def network(self, shape, rank):
        return Network.of_rank("m r, r n -> (m n)", {"m": shape[0], "n": shape[1]}, rank)


@dataclass(frozen=True)
class NoNetwork(Good):
    def network(self, shape, rank):
        return super().network(shape, rank).to_dict()


@dataclass(frozen=True)
class AnyRank(Good):
    def network(self, shape, rank):
        return super().network(shape, rank if rank != 0 else 1)


@dataclass(frozen=True)
class OneRank(Good):
    def network(self, shape, rank):
        return super().network(shape, rank if isinstance(rank, int) else 1)


@dataclass(frozen=True)
class Choosy(Good):
    def network(self, shape, rank):
        raise WeightError("never")


class Fits:
    """A fit that spoils the cores of a good one."""

    def fit(self, x, network, *, seed=0, metric=None):
        return self.spoil(x, super().fit(x, network, seed=seed), network)


@dataclass(frozen=True)
class Mutates(Fits, Good):
    def spoil(self, x, cores, network):
        x *= 2
        return cores


@dataclass(frozen=True)
class Transposed(Fits, Good):
    def spoil(self, x, cores, network):
        return [core.T for core in cores]


@dataclass(frozen=True)
class OneMore(Fits, Good):
    def spoil(self, x, cores, network):
        return [*cores, cores[0]]


@dataclass(frozen=True)
class Short(Fits, Good):
    def spoil(self, x, cores, network):
        return [core.astype(np.float32) for core in cores]


@dataclass(frozen=True)
class Long(Fits, Good):
    def spoil(self, x, cores, network):
        return [core.astype(np.float64) for core in cores]


@dataclass(frozen=True)
class Infinite(Fits, Good):
    def spoil(self, x, cores, network):
        return [core / 0.0 if k else core for k, core in enumerate(cores)]


@dataclass(frozen=True)
class NormedBlindly(Fits, Good):
    def spoil(self, x, cores, network):
        return [core / np.linalg.norm(core) * np.linalg.norm(x) ** 0.5 for core in cores]


@dataclass(frozen=True)
class Noisy(Fits, Good):
    def spoil(self, x, cores, network):
        return [core * (1 + 1e-9 * np.random.default_rng().standard_normal()) for core in cores]


@dataclass(frozen=True)
class Rising(Fits, Good):
    def spoil(self, x, cores, network):
        return [core * (0.99**network.n_params) for core in cores]


@dataclass(frozen=True)
class Coarse(Fits, Good):
    def spoil(self, x, cores, network):
        return [core * (1 + 1e-3) for core in cores]


@dataclass(frozen=True)
class Offset(Fits, Good):
    def spoil(self, x, cores, network):
        return [core + 1e-6 for core in cores]


@dataclass(frozen=True)
class Rough(Fits, Good):
    def spoil(self, x, cores, network):
        return [np.round(core, 0) for core in cores] if x.dtype == np.float32 else cores


@dataclass(frozen=True)
class Raises(Fits, Good):
    def spoil(self, x, cores, network):
        raise TypeError("unsupported operand")


@dataclass(frozen=True)
class Refuses(Fits, Good):
    def spoil(self, x, cores, network):
        raise RankError("not today")
