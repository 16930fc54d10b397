"""Weights rebuilt from their cores, against numpy.einsum, and networks that feed others."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.networks import close, cores_of, each, einsum
from tnc.contract import ACTIVATIONS, activate, apply, dense
from tnc.errors import PatternError
from tnc.network import Feed, Network


@each
def test_dense(network, place, rng):
    cores = cores_of(network, rng)
    close(place, dense(network, [place.from_numpy(c) for c in cores]), einsum(network, cores))


@each
def test_dense_cut_to_a_shape(network, place, rng):
    cores, shape = cores_of(network, rng), tuple(max(1, n - 1) for n in network.shape)
    ours = dense(network, [place.from_numpy(c) for c in cores], shape)
    close(place, ours, einsum(network, cores)[tuple(map(slice, shape))])


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh"])
def test_feeds(activation, place, rng):
    first = Network("a b, b c -> a c", {"a": 4, "b": 2, "c": 3})
    second = Network("p r, r c -> p c", {"p": 3, "r": 4, "c": 4}, Feed(first, "relu"))
    third = Network("m q, q n -> m n", {"m": 6, "q": 2, "n": 5}, Feed(second, activation))
    assert third.core_shapes == ((4, 2), (2, 3), (4, 4), (2, 5))
    cores = cores_of(third, rng)
    function = {
        "identity": lambda x: x,
        "relu": lambda x: np.maximum(x, 0),
        "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
        "tanh": np.tanh,
    }[activation]
    inner = np.maximum(cores[0] @ cores[1], 0).reshape(3, 4) @ cores[2]
    expected = function(inner).reshape(6, 2) @ cores[3]
    ours = [place.from_numpy(c) for c in cores]
    close(place, dense(third, ours), expected)
    x = rng.standard_normal((2, 5))
    close(place, apply(third, ours, place.from_numpy(x)), x @ expected.T)
    assert set(ACTIVATIONS) == {"identity", "relu", "leaky_relu", "tanh"}


def test_unknown_activation():
    with pytest.raises(PatternError, match="'swish' is unknown; there are identity, relu"):
        activate("swish", np.ones(2), np)
