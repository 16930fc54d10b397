"""Cores applied to inputs: ``x @ W.T`` against numpy.einsum, for any number of inputs."""

from __future__ import annotations

import pytest

from tests.contract.networks import close, cores_of, each, einsum
from tnc.contract import apply


@pytest.mark.pairwise("a library knows neither which network nor how many inputs")
@each
@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (0,)], ids=str)
def test_apply(network, lead, place, rng):
    cores = cores_of(network, rng)
    weight = einsum(network, cores)
    x = rng.standard_normal((*lead, weight[0].size))
    ours = apply(network, [place.from_numpy(c) for c in cores], place.from_numpy(x))
    close(place, ours, x @ weight.reshape(len(weight), -1).T)


@each
def test_apply_cut_to_a_shape(network, place, rng):
    cores, shape = cores_of(network, rng), tuple(max(1, n - 1) for n in network.shape)
    weight = einsum(network, cores)[tuple(map(slice, shape))]
    x = rng.standard_normal((3, weight[0].size))
    ours = apply(network, [place.from_numpy(c) for c in cores], place.from_numpy(x), shape)
    close(place, ours, x @ weight.reshape(len(weight), -1).T)
