"""Ranks of bonds from spectra: how a number of parameters is shared among bonds. All numbers are on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tnc.decomposition import Decomposition
from tnc.fit.linalg import spectrum
from tnc.fit.unfolding import tensorize, unfold
from tnc.network import Network
from tnc.typing import Array, Shape

__all__ = ["Spectra", "allocate", "even_network", "fill", "free_bonds", "smallest", "uniform"]


_CHEAP, _DEAR = -32.0, 2.0
"""Prices to search between: decimal logarithms of energy shares for each parameter."""


@dataclass(frozen=True)
class Spectra:
    """Energies of a weight at the free bonds of a tree. An energy is a squared singular value.

    Attributes
    ----------
    network : Network
        The topology at its smallest ranks.
    energies : dict of str to array
        Energies at each bond, largest first, as shares of the energy of the weight.
    size : int
        Parameters of the dense weight.
    """

    network: Network
    energies: dict[str, np.ndarray]
    size: int

    @classmethod
    def of(cls, x: Array, network: Network, free: Sequence[str]) -> Spectra:
        """Measure the spectra of a weight.

        Parameters
        ----------
        x : array
            The weight, float32 or float64, of a shape that `network` holds.
        network : Network
            A tree at its smallest ranks.
        free : sequence of str
            Bonds to measure.

        Raises
        ------
        RankError
            The network cannot hold a weight of this shape.
        """
        tensor, energies = tensorize(x, network), {}
        for bond in free:
            matrix, _ = unfold(tensor, network.outer, network.side(bond))  # one side of the bond against the other
            values = spectrum(matrix) ** 2
            energies[bond] = values / (values.sum() or 1.0)
        return cls(network, energies, prod(x.shape))

    def tail(self, bond: str, rank: int) -> float:
        """Share of the energy that is lost when `bond` has this rank."""
        return float(self.energies[bond][rank:].sum())

    def missed(self, network: Network) -> float:
        """Upper bound of the squared relative error of a network: the sum of the losses of its bonds."""
        return sum(self.tail(bond, network.sizes[bond]) for bond in self.energies)

    def least(self, network: Network) -> float:
        """Lower bound of the squared relative error of a network: the largest loss of a single bond."""
        return max(self.tail(bond, network.sizes[bond]) for bond in self.energies)

    def at(self, price: float) -> Network:
        """The network of the ranks at which one more parameter saves less energy than `price`, at every bond."""
        network = self.network
        for _ in range(12):  # the cost of a rank depends on the ranks of the neighbouring bonds
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
    """Number of parameters that a network gets when the rank of `bond` grows by one."""
    cores = (core for core in network.operands if bond in core)
    return sum(prod(network.sizes[i] for i in core if i != bond) for core in cores)


def allocate(spectra: Spectra, allowance: int | None, missed: float | None = None) -> Network:
    """Ranks of the bonds of a weight, at one common price of a parameter.

    With an `allowance`, the network keeps as much energy as possible. Without, it has as few parameters as possible.

    Parameters
    ----------
    spectra : Spectra
    allowance : int or None
        Largest number of parameters.
    missed : float, optional
        Without an allowance: largest bound of the squared relative error.
    """

    def fits(network: Network) -> bool:
        if allowance is not None:
            return min(network.n_params, spectra.size) <= allowance  # a larger network leaves the weight dense
        return spectra.missed(network) <= (missed or 0.0)

    best, worst = (_DEAR, _CHEAP) if allowance is None else (_CHEAP, _DEAR)
    if fits(network := spectra.at(10**best)):
        return network
    network = spectra.at(10**worst)  # if none fits
    for _ in range(24):  # to about 2e-6 of a decade
        middle = (best + worst) / 2
        if fits(trial := spectra.at(10**middle)):
            network, worst = trial, middle
        else:
            best = middle
    return network if allowance is None else fill(network, tuple(spectra.energies), allowance, spectra)


def fill(network: Network, free: Sequence[str], allowance: int, spectra: Spectra | None = None) -> Network:
    """Raise ranks one by one while the allowance lasts: those first that gain most energy for each parameter.

    Parameters
    ----------
    network : Network
    free : sequence of str
        Bonds that may grow.
    allowance : int
        Largest number of parameters.
    spectra : Spectra, optional
        Without spectra, smaller ranks are assumed to gain more.
    """
    while True:
        options = []
        for bond in free:
            rank = network.sizes[bond]
            larger = network.resize(**{bond: rank + 1})
            if larger.n_params <= allowance and larger.clipped() == larger:
                gain = float(spectra.energies[bond][rank : rank + 1].sum()) if spectra else 1.0 / rank
                options.append((gain / (larger.n_params - network.n_params), bond, larger))
        if not options:
            return network
        network = max(options, key=lambda option: option[:2])[2]


def uniform(decomposition: Decomposition, shape: Shape, allowance: int) -> Network:
    """The network of the largest rank, the same for all bonds, that fits the allowance.

    The search doubles the rank, then bisects.

    Parameters
    ----------
    decomposition : Decomposition
    shape : tuple of int
        Shape of the weight.
    allowance : int
        Number of parameters. The smallest rank must fit.
    """

    def at(k: int) -> Network:
        return decomposition.network(shape, k * decomposition.step).clipped()

    low, high = 1, 2
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
    """The network of the smallest rank, the same for all bonds, that keeps a promise.

    The search doubles the rank, then bisects.

    Parameters
    ----------
    decomposition : Decomposition
    shape : tuple of int
        Shape of the weight.
    keeps : callable
        Whether a network keeps the promise.

    Returns
    -------
    Network or None
        None if no rank keeps it.
    """

    def at(k: int) -> Network:
        return decomposition.network(shape, k * decomposition.step).clipped()

    low, high, best = 0, 1, at(1)
    while not keeps(best):
        before = best
        low, high = high, 2 * high
        best = at(high)
        if best == before:  # clipped: larger ranks change nothing
            return None
    while high - low > 1:
        middle = (low + high) // 2
        network = at(middle)
        if keeps(network):
            high, best = middle, network
        else:
            low = middle
    return best


def free_bonds(decomposition: Decomposition, shape: Shape) -> tuple[str, ...] | None:
    """Bonds whose size depends on the rank; None if the rank changes the topology itself."""
    small, large = (decomposition.network(shape, k * decomposition.step) for k in (1, 2))
    if small.pattern != large.pattern or small.feed != large.feed:
        return None
    return tuple(bond for bond in small.bonds if small.sizes[bond] != large.sizes[bond])


def even_network(decomposition: Decomposition, shape: Shape, allowance: int) -> Network:
    """Ranks as equal as the allowance permits; the smallest are known to fit.

    Parameters
    ----------
    decomposition : Decomposition
    shape : tuple of int
        Of the weight.
    allowance : int
        Parameters that may be kept.
    """
    free, even = free_bonds(decomposition, shape), uniform(decomposition, shape, allowance)
    return even if free is None or (even.is_tree and len(free) > 1) else fill(even, free, allowance)
