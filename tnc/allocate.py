"""Sharing parameters among bonds: spectra in, ranks out. Plain numbers only, no arrays of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tnc.decomposition import Decomposition
from tnc.fit import tensorize, unfold
from tnc.linalg import spectrum
from tnc.network import Network
from tnc.typing import Array, Shape

__all__ = ["Spectra", "allocate", "fill", "free_bonds", "smallest", "uniform"]


@dataclass(frozen=True)
class Spectra:
    """Energies at the free bonds of a tree, relative to the weight's.

    Attributes
    ----------
    network : Network
        The topology at its smallest ranks.
    energies : dict of str to array
        Squared singular values at each bond, largest first, summing to one.
    size : int
        Parameters of the dense weight.
    """

    network: Network
    energies: dict[str, np.ndarray]
    size: int

    @classmethod
    def of(cls, x: Array, network: Network, free: Sequence[str]) -> Spectra:
        """Measure the spectra of a weight at the bonds `free`."""
        tensor, energies = tensorize(x, network), {}
        for bond in free:
            values = spectrum(unfold(tensor, network.outer, network.side(bond))[0]) ** 2
            energies[bond] = values / (values.sum() or 1.0)
        return cls(network, energies, prod(x.shape))

    def tail(self, bond: str, rank: int) -> float:
        """Relative energy lost when `bond` keeps `rank` values."""
        return float(self.energies[bond][rank:].sum())

    def missed(self, network: Network) -> float:
        """Bound of the squared relative error of a network: the sum of its bonds' tails."""
        return sum(self.tail(bond, network.sizes[bond]) for bond in self.energies)

    def least(self, network: Network) -> float:
        """The squared relative error that no fit of a network can be below: the largest of its bonds' tails."""
        return max(self.tail(bond, network.sizes[bond]) for bond in self.energies)

    def at(self, price: float) -> Network:
        """Ranks at which one more parameter anywhere would save less energy than `price`."""
        network = self.network
        for _ in range(12):  # prices of neighbouring bonds depend on each other
            ranks = {}
            for bond, energy in self.energies.items():
                cost = slope(network, bond)
                ranks[bond] = max(self.network.sizes[bond], int(np.sum(energy > price * cost)))
            changed = network.resize(**ranks).clipped()
            if changed == network:
                break
            network = changed
        return network


def slope(network: Network, bond: str) -> int:
    """Parameters that one more rank of `bond` costs."""
    cores = (core for core in network.operands if bond in core)
    return sum(prod(network.sizes[i] for i in core if i != bond) for core in cores)


def _cost(spectra: Spectra, network: Network) -> int:
    return min(network.n_params, spectra.size)  # a weight no smaller than dense stays dense


def allocate(spectra: Sequence[Spectra], allowance: int | None, missed: float | None = None) -> list[Network]:
    """Ranks of several weights at one common price of a parameter.

    Either the most energy that fits an `allowance` of parameters, or the fewest parameters that miss at most
    the relative energy `missed`.
    """

    def fits(networks: Sequence[Network]) -> bool:
        if allowance is not None:
            return sum(map(_cost, spectra, networks)) <= allowance
        return sum(s.missed(n) for s, n in zip(spectra, networks, strict=True)) <= (missed or 0.0)

    cheap, dear = -32.0, 2.0  # decimal logarithm of the price of a parameter in relative energy
    low, high = [s.at(10**cheap) for s in spectra], [s.at(10**dear) for s in spectra]
    if allowance is None:
        low, high, cheap, dear = high, low, dear, cheap
    if fits(low):
        return low
    best = high
    for _ in range(24):  # `cheap` never fits, `dear` does; to some 2e-6 of a decade
        middle = (cheap + dear) / 2
        trial = [s.at(10**middle) for s in spectra]
        if fits(trial):
            best, dear = trial, middle
        else:
            cheap = middle
    if allowance is None:
        return best
    for k, s in enumerate(spectra):  # spend what is left
        others = sum(_cost(o, n) for j, (o, n) in enumerate(zip(spectra, best, strict=True)) if j != k)
        best[k] = fill(best[k], tuple(s.energies), allowance - others, s)
    return best


def fill(network: Network, free: Sequence[str], allowance: int, spectra: Spectra | None = None) -> Network:
    """Raise single bonds while the allowance lasts: the best gain per parameter first, or the smallest bond."""
    while True:
        options = []
        for bond in free:
            larger = network.resize(**{bond: network.sizes[bond] + 1})
            if larger.n_params <= allowance and larger.clipped() == larger:
                rank = network.sizes[bond]
                gain = float(spectra.energies[bond][rank : rank + 1].sum()) if spectra else 1.0 / rank
                options.append((gain / (larger.n_params - network.n_params), bond, larger))
        if not options:
            return network
        network = max(options, key=lambda option: option[:2])[2]


def uniform(decomposition: Decomposition, shape: Shape, allowance: int) -> Network:
    """The largest rank for all bonds at once that fits the allowance; the smallest is known to fit."""
    step, low, high = decomposition.step, 1, 2

    def at(k: int) -> Network:
        return decomposition.network(shape, k * step).clipped()

    best = at(low)
    while (network := at(high)).n_params <= allowance and network != best:
        best, low, high = network, high, 2 * high
    if network.n_params <= allowance:
        return network
    while high - low > 1:
        middle = (low + high) // 2
        network = at(middle)
        if network.n_params <= allowance:
            best, low = network, middle
        else:
            high = middle
    return best


def smallest(decomposition: Decomposition, shape: Shape, keeps: Callable[[Network], bool]) -> Network | None:
    """The smallest rank for all bonds at once whose network keeps a promise, by doubling and bisection."""

    def at(k: int) -> Network:
        return decomposition.network(shape, k * decomposition.step).clipped()

    low, high, best = 0, 1, at(1)
    while not keeps(best):
        low, high, before, best = high, 2 * high, best, at(2 * high)
        if best == before:  # a larger rank changes nothing any more
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if keeps(network := at(middle)):
            high, best = middle, network
        else:
            low = middle
    return best


def free_bonds(decomposition: Decomposition, shape: Shape) -> tuple[str, ...] | None:
    """Bonds that follow the rank, or None where the rank changes the topology itself."""
    small, large = (decomposition.network(shape, k * decomposition.step) for k in (1, 2))
    if small.pattern != large.pattern or small.feed != large.feed:
        return None
    return tuple(bond for bond in small.bonds if small.sizes[bond] != large.sizes[bond])
