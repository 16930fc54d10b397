"""Axes become modes: roles by shape, balanced factors, names in the order of a pattern."""

from __future__ import annotations

from math import prod

import pytest

from tnc.errors import WeightError
from tnc.modes import balanced, modes, roles


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 20), ((), 0, 1, ())),
        ((10, 20, 5), ((), 0, 1, (2,))),
        ((10, 20, 3, 3), ((), 0, 1, (2, 3))),
        ((10, 20, 3, 3, 3), ((), 0, 1, (2, 3, 4))),
        ((8, 64, 128), ((0,), 1, 2, ())),  # experts: a kernel of 128 positions does not exist
    ],
    ids=str,
)
def test_roles(shape, expected):
    assert roles(shape) == expected


@pytest.mark.parametrize("shape", [(), (7,)], ids=str)
def test_nothing_to_factorize(shape):
    with pytest.raises(WeightError, match=r"fewer than two axes"):
        roles(shape)


@pytest.mark.parametrize(
    ("length", "order", "expected"),
    [
        (64, 3, (4, 4, 4)),
        (64, 1, (64,)),
        (1, 3, (1, 1, 1)),
        (784, 4, (7, 4, 4, 7)),
        (4096, 4, (8, 8, 8, 8)),
        (6, 3, (3, 1, 2)),
        (41, 2, (7, 6)),  # one more than a prime
        (13, 2, (13, 1)),  # 14 is more than 5 % above
        (50257, 3, (43, 30, 39)),
    ],
)
def test_balanced(length, order, expected):
    found = balanced(length, order)
    assert sorted(found) == sorted(expected) and prod(found) == prod(expected)


@pytest.mark.parametrize("length", [1, 2, 7, 10, 97, 128, 768, 1000, 3072, 10_007, 11_008, 32_000, 50_257, 151_936])
def test_balanced_factors_hold_the_length(length):
    for order in (1, 2, 3, 4, 5, 8):
        found = balanced(length, order)
        assert len(found) == order and all(f >= 1 for f in found)
        assert length <= prod(found) <= 1.05 * length
        if order > 2:  # an end core has one bond, an inner core two: the largest factors are outside
            assert min(found[0], found[-1]) >= max(found[1:-1])


@pytest.mark.parametrize(("length", "order"), [(50_257, 2), (50_257, 3), (151_936, 4), (10_007, 3), (1009, 2)])
def test_large_primes_are_overshot(length, order):
    assert max(balanced(length, order)) <= 2 * length ** (1 / order)


def test_named_modes_of_a_matrix():
    found = modes((12, 20), 2)
    assert found.rows == ("m0", "m1") and found.columns == ("n0", "n1")
    assert prod(found.sizes[m] for m in found.rows) == 12 and prod(found.sizes[n] for n in found.columns) == 20
    assert found.right == "(m0 m1) (n0 n1)" and found.sites == ("m0", "m1", "n0", "n1")


def test_named_modes_of_a_kernel_and_of_a_stack():
    kernel = modes((8, 6, 3, 5), 1)
    assert kernel.right == "(m0) (n0) k0 k1" and kernel.sizes == {"m0": 8, "n0": 6, "k0": 3, "k1": 5}
    assert kernel.sites == ("m0", "k0 k1", "n0")
    assert modes((8, 6, 1, 1), 1).sites == ("m0", "n0 k0 k1")
    stack = modes((3, 8, 40), 1)
    assert stack.right == "s0 (m0) (n0)" and stack.sizes == {"s0": 3, "m0": 8, "n0": 40}


def test_given_factors():
    found = modes((256, 784), rows=(4, 4, 4, 4), columns=(4, 7, 7, 4))
    assert [found.sizes[m] for m in (*found.rows, *found.columns)] == [4, 4, 4, 4, 4, 7, 7, 4]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rows": (2, 5)}, r"rows=\(2, 5\) cannot hold the 12 rows of a weight of shape \(12, 20\)"),
        ({"columns": (20, 0)}, r"columns=\(20, 0\) cannot hold the 20 columns"),
        ({"columns": (-4, -5)}, r"columns=\(-4, -5\)"),
        ({"order": 0}, "order=0: at least one factor"),
    ],
)
def test_impossible_factors(given, words):
    with pytest.raises(WeightError, match=words):
        modes((12, 20), **given)
