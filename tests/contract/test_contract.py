"""Contractions against numpy.einsum: rebuilding, applying, padding, on every array library."""

from __future__ import annotations

import numpy as np

from tests.contract.networks import close, cores_of, each
from tnc.contract import apply, contract, dense


@each
def test_operands_are_only_read(network, place, rng):
    cores = [place.from_numpy(c) for c in cores_of(network, rng)]
    x = place.from_numpy(rng.standard_normal((2, network.n_params))[:, : int(np.prod(network.shape[1:]))].copy())
    before = [place.to_numpy(a).copy() for a in (*cores, x)]
    dense(network, cores), apply(network, cores, x)
    for old, new in zip(before, (*cores, x), strict=True):
        assert np.array_equal(old, place.to_numpy(new))


def test_a_batch_index_stays_in_front(place, rng):
    a, b = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 4, 5))
    ours = contract([("*", "m", "r"), ("*", "r", "n")], ("*", "m", "n"), [place.from_numpy(a), place.from_numpy(b)])
    close(place, ours, a @ b)


def test_many_operands_of_all_kinds(place, rng):
    sizes = {"a": 2, "b": 3, "c": 4, "d": 2, "e": 3}
    operands = [("a", "b"), ("b", "c", "d"), ("d", "e"), ("e", "a", "c"), ("e",), ("c", "b")]
    arrays = [rng.standard_normal([sizes[i] for i in core]) for core in operands]
    expected = np.einsum("ab,bcd,de,eac,e,cb->ec", *arrays)
    close(place, contract(operands, ("e", "c"), [place.from_numpy(x) for x in arrays]), expected)
    scalar = contract(operands, (), [place.from_numpy(x) for x in arrays])
    close(place, scalar, expected.sum())


def test_a_large_operand_with_many_small_ones(place, rng):
    # The planner treats a large tensor in another way: the result must not tell.
    shape = (8, 9, 7, 6, 10)
    x, names = rng.standard_normal(shape), ["i", "j", "k", "l", "o"]
    factors = [rng.standard_normal((n, 3)) for n in shape]
    operands = [tuple(names), *((name, name.upper()) for name in names)]
    ours = contract(operands, ("O", "I", "K", "J", "L"), [place.from_numpy(a) for a in (x, *factors)])
    close(place, ours, np.einsum("ijklo,iI,jJ,kK,lL,oO->OIKJL", x, *factors))
