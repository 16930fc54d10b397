"""Networks of every kind, and what they rebuild by the definition."""

from __future__ import annotations

import numpy as np
import pytest

from tnc.network import Network

NETWORKS = {
    "one core": Network("m0 n0 -> m0 n0", {"m0": 4, "n0": 6}),
    "svd": Network("m0 r0, r0 n0 -> m0 n0", {"m0": 4, "n0": 6, "r0": 3}),
    "mpo": Network(
        "m0 n0 r1, r1 m1 n1 r2, r2 m2 n2 -> (m0 m1 m2) (n0 n1 n2)",
        {"m0": 2, "n0": 3, "r1": 4, "m1": 3, "n1": 2, "r2": 2, "m2": 2, "n2": 5},
    ),
    "tucker": Network(
        "m0 r0, n0 r1, r0 r1 k0 k1 -> m0 n0 k0 k1", {"m0": 5, "n0": 4, "r0": 2, "r1": 3, "k0": 3, "k1": 2}
    ),
    "cp": Network("m0 r0, n0 r0, k0 r0, k1 r0 -> m0 n0 k0 k1", {"m0": 4, "n0": 5, "k0": 3, "k1": 3, "r0": 6}),
    "ring": Network(
        "r2 m0 r0, r0 n0 r1, r1 k0 r2 -> m0 n0 k0", {"m0": 4, "n0": 5, "k0": 3} | dict.fromkeys(("r0", "r1", "r2"), 2)
    ),
    "semi-tensor": Network("m0 t0 r0, r0 t1 n0 -> (m0 t0) (n0 t1)", {"m0": 3, "t0": 2, "r0": 2, "t1": 2, "n0": 5}),
    "blocks": Network("b m0 r0, b r0 n0 -> m0 n0", {"b": 3, "m0": 4, "r0": 2, "n0": 5}),
    "shared on the right": Network("s m0 r0, s r0 n0 -> s m0 n0", {"s": 3, "m0": 4, "r0": 2, "n0": 5}),
    "rows last": Network("n0 r0, r0 m0 -> m0 n0", {"m0": 4, "n0": 6, "r0": 3}),
    "mixed axes": Network("n1 m0 r0, r0 m1 n0 -> (m0 m1) (n0 n1)", {"m0": 2, "m1": 3, "n0": 4, "n1": 5, "r0": 2}),
}
each = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def cores_of(network, rng):
    return [rng.standard_normal(shape) for shape in network.core_shapes]


def einsum(network, cores):
    """The definition, by NumPy."""
    letter = {name: k for k, name in enumerate(network.sizes)}
    operands = [
        x for core, names in zip(cores, network.operands, strict=True) for x in (core, [letter[i] for i in names])
    ]
    return np.einsum(*operands, [letter[i] for i in network.outer]).reshape(network.shape)


def close(place, ours, theirs):
    ours = place.to_numpy(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(theirs).max(initial=0.0)))
