"""Contraction trees: how many there are, that each is a tree, and that the cheapest of neighbours are."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest

from tnc.contract.trees import all_trees, contiguous, multiplications, sequential


def joined(n, path):
    """The sets of operands that each step joins; every operand must end in one."""
    held = [frozenset([k]) for k in range(n)]
    found = []
    for i, j in path:
        assert i < j < len(held)
        right, left = held.pop(j), held.pop(i)
        held.append(left | right)
        found.append((left, right))
    assert held == [frozenset(range(n))]
    return found


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_tree_is_there_once(n):
    """There are ``(2 n - 3)!!`` trees of n labelled leaves."""
    trees = {frozenset(left | right for left, right in joined(n, path)) for path in all_trees(n)}
    assert len(trees) == len(all_trees(n)) == prod(range(1, 2 * n - 2, 2))


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_in_sequence_the_first_takes_in_the_others_from_either_end(n):
    from_left, from_right = ([*joined(n, path)] for path in sequential(n))
    for steps, others in ((from_left, range(1, n)), (from_right, range(n - 1, 0, -1))):
        assert [min(pair, key=lambda part: 0 in part) for pair in steps] == [{k} for k in others]


CHAIN = [("*", "a"), ("a", "b"), ("b", "c"), ("c", "d")]
SIZES = {"*": 3, "a": 7, "b": 2, "c": 9, "d": 5}


def test_multiplications_are_those_of_matrix_products():
    in_pairs = ((0, 1), (0, 1), (0, 1))  # what is made goes to the end of the list
    assert [len(left | right) for left, right in joined(4, in_pairs)] == [2, 2, 4]
    assert multiplications(CHAIN, ("*", "d"), SIZES, in_pairs) == 3 * 7 * 2 + 2 * 9 * 5 + 3 * 2 * 5


def test_trees_of_neighbours_are_the_cheapest_of_all_for_a_chain():
    costs = {path: multiplications(CHAIN, ("*", "d"), SIZES, path) for path in all_trees(4)}
    found = contiguous(CHAIN, ("*", "d"), SIZES)
    assert found and {multiplications(CHAIN, ("*", "d"), SIZES, path) for path in found} == {min(costs.values())}
    assert min(costs.values()) < max(costs.values()) and all(a < b for a, b in pairwise(found))
