"""Sharing parameters among bonds: searches over ranks, by count and by what each rank is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import tnc
from tnc import Decomposition, Network
from tnc.ranks.allocation import Spectra, allocate, fill, slope, smallest, uniform

SVD, MPO = tnc.decompositions["svd"](), tnc.decompositions["mpo"](rows=(4, 4, 4), columns=(4, 4, 4))


def spectra_of(decays, network):
    """Spectra made up: geometric, one ratio for each bond."""
    energies = {}
    for bond, decay in zip(network.bonds, decays, strict=True):
        values = decay ** np.arange(16.0)
        energies[bond] = values / values.sum()
    return Spectra(network.resize(**dict.fromkeys(network.bonds, 1)), energies, 64 * 64)


@pytest.mark.parametrize("allowance", [20, 21, 100, 159, 160, 10_000])
def test_uniform_is_the_largest_that_fits(allowance):
    network = uniform(SVD, (8, 12), allowance)
    rank = network.ranks[0]
    assert network.n_params <= allowance and rank == min(8, allowance // 20)


def test_uniform_goes_in_steps():
    @dataclass(frozen=True)
    class Even(Decomposition):
        step = 2

        def network(self, shape, rank):
            assert rank % 2 == 0
            return Network.of_rank("m r, r n -> m n", {"m": shape[0], "n": shape[1]}, rank)

    assert uniform(Even(), (8, 12), 119).ranks == (4,)


@pytest.mark.parametrize("least", [1, 2, 3, 5, 6, 8])
def test_smallest_is_the_first_that_keeps(least):
    tried = []

    def keeps(network):
        tried.append(network.ranks[0])
        return network.ranks[0] >= least

    assert smallest(SVD, (8, 12), keeps).ranks == (least,)
    assert len(tried) == len(set(tried))  # a trial may be a fit: none is made twice


def test_smallest_gives_up_where_a_rank_changes_nothing():
    tried = []
    assert smallest(SVD, (8, 12), lambda network: bool(tried.append(network.ranks[0]))) is None
    assert tried == [1, 2, 4, 8]


def test_fill_spends_what_is_left():
    start = MPO.network((64, 64), 2)
    network = fill(start, ("r1", "r2"), start.n_params + 100)
    assert network.n_params <= start.n_params + 100
    for bond in network.bonds:
        assert network.resize(**{bond: network.sizes[bond] + 1}).n_params > start.n_params + 100
    assert fill(start, (), 10**6) == start
    assert fill(start, ("r1", "r2"), 10**6).ranks == (16, 16)  # no bond beyond what it can use


def test_fill_prefers_the_bond_with_the_most_energy():
    start = MPO.network((64, 64), 1)
    spectra = spectra_of((0.1, 0.9), start)
    assert fill(start, ("r1", "r2"), start.n_params + slope(start, "r2") + 2, spectra).ranks == (1, 2)


def test_slope_is_the_price_of_one_more():
    network = MPO.network((64, 64), 3)
    for bond in network.bonds:
        larger = network.resize(**{bond: network.sizes[bond] + 1})
        assert slope(network, bond) == larger.n_params - network.n_params


@pytest.mark.parametrize("allowance", [300, 700, 1500])
def test_an_allowance_is_kept_and_spent(allowance):
    spectra = spectra_of((0.5, 0.9), MPO.network((64, 64), 1))
    network = allocate(spectra, allowance)
    assert network.n_params <= allowance
    assert network.ranks[0] < network.ranks[1]
    larger = [network.resize(**{bond: network.sizes[bond] + 1}) for bond in network.bonds]
    assert all(more.n_params > allowance for more in larger if more.clipped() == more)


@pytest.mark.parametrize("missed", [0.5, 0.1, 0.01])
def test_missed_energy_is_bounded(missed):
    spectra = spectra_of((0.5, 0.9), MPO.network((64, 64), 1))
    network = allocate(spectra, None, missed=missed)
    assert spectra.missed(network) <= missed
    assert spectra.least(network) <= spectra.missed(network)
    stricter = allocate(spectra, None, missed=missed / 2)
    assert stricter.n_params > network.n_params
