"""Curves of a weight: its predicted error as a function of the size, for networks of one decomposition."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log, prod
from typing import NamedTuple, TypeAlias

import numpy as np

from tnc.decomposition import Factorization, InRoles
from tnc.fit.linalg import wide
from tnc.fit.metric import Metric
from tnc.network import Network
from tnc.ranks.allocation import Spectra, fill, free_bonds, uniform
from tnc.typing import Array, Shape

__all__ = ["Point", "Rival", "Subject", "curve", "predicted"]

_SIZES, _MEASURED, _LARGEST = 40, 6, 0.8
"""Networks of a curve, how many of them are fitted (the errors of the others are interpolated), and the largest of
these as a share of the dense weight: larger fits take most of the time."""

_MOST_WORK = 250_000_000
"""Among several decompositions, no network is considered whose fit would take longer: about half a second."""

_GAP = 0.02
"""Networks are added where sizes differ by more than this share."""

_PRICES, _CHEAPEST = 80, -16.0
"""Prices of a parameter that are tried in a tree, and the logarithm of the lowest: shares of the weight's energy."""

_TINY = 1e-14
"""Squared errors below this one count as equal to it."""


class Rival(NamedTuple):
    """What a decomposition would have given at about the size that was chosen: parameters, and the predicted error."""

    decomposition: InRoles
    size: int
    error: float


class Point(NamedTuple):
    """A network for a weight, and its predicted squared error, relative to the squared norm of the weight.

    Where there were several decompositions to choose among, `rivals` has what each of them would have given.
    """

    decomposition: InRoles
    network: Network
    error: float
    rivals: tuple[Rival, ...] = ()

    @property
    def rival(self) -> Rival:
        """The point, as others see it."""
        return Rival(self.decomposition, self.network.n_params, self.error)

    def among(self, points: Sequence[Point]) -> Point:
        """The point with its rivals: of each decomposition the best one that is no larger, or else the smallest."""
        best: dict[InRoles, Rival] = {}
        for rival in (point.rival for point in points):
            old = best.setdefault(rival.decomposition, rival)
            if rival.size <= self.network.n_params and (rival.error, rival.size) < (old.error, old.size):
                best[rival.decomposition] = rival
        return self._replace(rivals=tuple(best.values()) if len(best) > 1 else ())


Curves: TypeAlias = dict[int | None, list[Point]]
"""The points of a weight, by the gap between neighbours that was asked for."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A weight to be allotted a size.

    Attributes
    ----------
    x : array
        The weight, float32 or float64.
    candidates : tuple of InRoles
        Decompositions to choose among.
    metric : Metric, optional
        The norm of errors, for the weight with its axes in the order of the roles.
    importance : float
        What a squared relative error of 1 adds to the loss. By default all weights count the same.
    uses : float
        Input vectors for each sample, for a budget of operations.
    itemsize : int
        Bytes of a stored number, for a budget of bytes.
    seed : int
    known : dict, optional
        The points of all candidates by their gap. They are added once they were computed.
    """

    x: Array
    candidates: tuple[InRoles, ...]
    metric: Metric | None = None
    importance: float = 1.0
    uses: float = 1.0
    itemsize: int = 4
    seed: int = 0
    known: Curves | None = None

    def seen(self, decomposition: InRoles) -> Array:
        """The weight times the root of its metric, as far as the networks of a decomposition allow."""
        return self.x if self.metric is None else decomposition.whitened(self.x, self.metric)

    @property
    def size(self) -> int:
        """Parameters of the dense weight."""
        return prod(self.x.shape)


def curve(subject: Subject, decomposition: InRoles, *, gap: int | None = None) -> list[Point]:
    """Networks of one decomposition from the smallest to the dense size, with predicted errors.

    In a tree, singular values give ranks and bounds of the errors for every size. Other networks have ranks that are as
    equal as possible. Some networks are fitted, with few sweeps. The errors of the others are interpolated between
    these, on logarithmic scales.

    Parameters
    ----------
    subject : Subject
    decomposition : InRoles
    gap : int, optional
        Parameters between neighbouring networks, at most, as far as ranks allow. By default the size of the weight, so
        that sizes are evenly spaced on a logarithmic scale.

    Returns
    -------
    list of Point
        By size. Empty if the smallest network is as large as the dense weight.

    Raises
    ------
    RankError, WeightError
        The decomposition has no network for this weight.
    """
    shape, dense = tuple(subject.x.shape), subject.size
    least = decomposition.network(shape, decomposition.step).clipped()
    free = free_bonds(decomposition, shape)
    if least.n_params >= dense:
        return []
    gap = max(gap or dense, 1)
    goals = _goals(least.n_params, dense, gap)
    spectra = Spectra.of(subject.seen(decomposition), least, free) if free and least.is_tree else None
    if spectra is None:
        networks = _considered(subject, _distinct(_even(decomposition, shape, free, goals, gap), dense))
        guesses = [1.0] * len(networks)
    else:
        networks = _distinct(_priced(spectra, goals, gap), dense)
        guesses = [max(spectra.missed(network), _TINY) for network in networks]
    errors = guesses
    if spectra is None or not _bounds_suffice(subject, spectra):
        errors = _interpolated(networks, guesses, partial(predicted, subject, decomposition))
    return [Point(decomposition, n, e) for n, e in zip(networks, errors, strict=True)]


def _bounds_suffice(subject: Subject, spectra: Spectra) -> bool:
    """Whether bounds of errors need no fits: they are the errors, or are compared with bounds of their kind only."""
    if len(spectra.energies) == 1 and len(spectra.network.core_shapes) == 2:
        return True
    return subject.metric is None and len(subject.candidates) == 1


def _considered(subject: Subject, networks: list[Network]) -> list[Network]:
    """The networks; among several decompositions without those that take long to fit."""
    if len(subject.candidates) == 1:
        return networks
    return [network for network in networks if _work(network) <= _MOST_WORK]


def _work(network: Network) -> int:
    """About the multiplications of a sweep of least squares."""
    return len(network.operands) * prod(network.shape) * max(network.ranks, default=1)


def _goals(least: int, dense: int, gap: int) -> list[int]:
    """Sizes from the smallest to the dense one: evenly spaced on a logarithmic scale, no further apart than `gap`."""
    return sorted({round(float(n)) for n in np.geomspace(least, dense, _SIZES)} | {*range(least, dense, gap)})


def _priced(spectra: Spectra, goals: Sequence[int], gap: int) -> list[Network]:
    """Networks of a tree of about the sizes asked for: at falling prices of a parameter, and filled up between."""
    networks = {spectra.network.n_params: spectra.network}
    for price in np.logspace(0.0, _CHEAPEST, _PRICES):
        network = spectra.at(float(price))
        networks[network.n_params] = network
    return _filled(networks, tuple(spectra.energies), goals, gap, spectra)


def _even(
    decomposition: InRoles, shape: Shape, free: tuple[str, ...] | None, goals: Sequence[int], gap: int
) -> list[Network]:
    """Networks of about the sizes asked for, with ranks that are as equal as possible."""
    largest = uniform(decomposition, shape, goals[-1])
    most = next((largest.sizes[bond] for bond in free), 1) if free else max(largest.ranks, default=1)
    step = decomposition.step
    ranks = {max(1, round(float(k))) for k in np.geomspace(1, max(most // step, 1) + 1, len(goals))}
    found = [decomposition.network(shape, k * step).clipped() for k in sorted(ranks)]
    networks = {network.n_params: network for network in [*found, largest]}
    return _filled(networks, free or (), goals, gap) if free else list(networks.values())


def _filled(
    networks: dict[int, Network], free: tuple[str, ...], goals: Sequence[int], gap: int, spectra: Spectra | None = None
) -> list[Network]:
    """The networks, and more of them where there are gaps between their sizes."""
    sizes = sorted(networks)
    for goal in goals:
        below = sizes[max(bisect(sizes, goal) - 1, 0)]
        if goal - below > min(_GAP * goal, gap):
            filled = fill(networks[below], free, goal, spectra)
            if filled.n_params not in networks:
                networks[filled.n_params] = filled
                insort(sizes, filled.n_params)
    return list(networks.values())


def _distinct(networks: Sequence[Network], dense: int) -> list[Network]:
    """Networks below the dense size, one of each size, by size."""
    return list({n.n_params: n for n in sorted(networks, key=lambda n: n.n_params) if n.n_params < dense}.values())


def _interpolated(
    networks: Sequence[Network], guesses: Sequence[float], error: Callable[[Network], float]
) -> list[float]:
    """Errors of all networks from those of some.

    The logarithm of the ratio to the guesses is interpolated over the square root of the size. For kernels of trained
    networks it is nearly linear in that.
    """
    if not networks:
        return []
    every = np.sqrt([network.n_params for network in networks])
    goals = np.linspace(every[0], _LARGEST**0.5 * every[-1], _MEASURED)
    places = sorted({int(np.argmin(np.abs(every - goal))) for goal in goals})
    ratios = [log(max(error(networks[k]), _TINY) / guesses[k]) for k in places]
    known = every[places]
    if len(places) > 1:  # beyond the largest one that is fitted, the line goes on
        slope = (ratios[-1] - ratios[-2]) / (known[-1] - known[-2])
        known, ratios = np.append(known, every[-1] + 1), [*ratios, ratios[-1] + slope * (every[-1] + 1 - known[-1])]
    factors = np.interp(every, known, ratios)
    errors = [guess * exp(factor) for guess, factor in zip(guesses, factors, strict=True)]
    return [max(float(error), _TINY) for error in np.minimum.accumulate(errors)]


def predicted(subject: Subject, decomposition: InRoles, network: Network) -> float:
    """Squared relative error that a fit is expected to reach, from few sweeps.

    Parameters
    ----------
    subject : Subject
    decomposition : InRoles
    network : Network
        Of this decomposition, for the weight of the subject.
    """
    cores = decomposition.quick(subject.x, network, subject.metric, seed=subject.seed)
    factorization = Factorization(network, cores, tuple(subject.x.shape))
    if subject.metric is None:
        return factorization.error(subject.x) ** 2
    return decomposition.error(subject.x, factorization.map(wide).dense(), subject.metric) ** 2
