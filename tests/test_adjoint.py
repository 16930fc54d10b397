"""Reverse mode of plans: the adjoint of every operand, on every library."""

from __future__ import annotations

import numpy as np
import pytest

from tnc.adjoint import pull, push
from tnc.plans import plan, run

CASES = {
    "one operand": ([("a", "b")], ("b", "a")),
    "pair": ([("a", "b"), ("b", "c")], ("c", "a")),
    "batched": ([("*", "b", "r"), ("r", "b", "c")], ("*", "b", "c")),
    "spread": ([("*", "r", "."), ("m", "r")], ("*", "m", ".")),
    "sum of outer": ([("*", "a"), ("b",)], ("b", "*", "a")),
    "train": ([("*", "n", "o"), ("m", "n", "r"), ("r", "p", "o")], ("*", "m", "p")),
    "train, rebuilt first": ([("*", "n", "o"), ("m", "n", "r"), ("r", "p", "o")], ("*", "m", "p"), ((1, 2), (0, 1))),
    "ring": ([("*", "n", "o"), ("s", "n", "r"), ("r", "m", "t"), ("t", "o", "s")], ("*", "m")),
    "hyperedge": ([("*", "n", "o"), ("m", "r"), ("n", "r"), ("o", "r")], ("*", "m")),
}
SIZES = {"a": 3, "b": 4, "c": 5, "r": 2, "n": 3, "o": 4, "m": 5, "p": 6, "s": 2, "t": 3, "*": 7, ".": 6}


@pytest.fixture(params=CASES, ids=str)
def made(request, rng):
    """A plan and operands for it."""
    operands, output, *path = CASES[request.param]
    sizes = {i: SIZES[i] for core in operands for i in core}
    made = plan(tuple(operands), output, tuple(sizes.items()), "auto", *path)
    return made, [rng.standard_normal([sizes[i] for i in core]) for core in operands]


@pytest.mark.parametrize("allowed", [0, 40, 1e9])
def test_pull_is_the_adjoint_in_every_operand(made, place, rng, allowed):
    """The result is linear in each operand X: ``<g, run(dX)> == <pull(g), dX>`` for any direction dX."""
    (plan, arrays), xp = made, place.xp
    moved = [place.from_numpy(x) for x in arrays]
    result, kept = push(plan, moved, xp, allowed)
    g = rng.standard_normal(result.shape)
    found = pull(plan, moved, kept, place.from_numpy(g), [True] * len(moved), xp)
    assert np.allclose(place.to_numpy(result), run(plan, arrays), rtol=1e-12)
    for k, x in enumerate(arrays):
        way = rng.standard_normal(x.shape)
        ahead = run(plan, [way if j == k else other for j, other in enumerate(arrays)])
        assert found[k].shape == x.shape
        assert np.isclose(np.vdot(g, ahead), np.vdot(place.to_numpy(found[k]), way), rtol=1e-10)


def test_only_what_is_needed(made):
    plan, arrays = made
    result, kept = push(plan, arrays, np)
    assert kept == {}
    needed = [k == 0 for k in range(len(arrays))]
    found = pull(plan, arrays, kept, result, needed, np)
    assert [x is not None for x in found] == needed
    assert pull(plan, arrays, kept, result, [False] * len(arrays), np) == [None] * len(arrays)


def test_small_intermediates_are_kept_within_the_allowance(rng):
    sizes = (("*", 50), ("n", 40), ("r", 2), ("m", 30))
    made = plan((("*", "n"), ("n", "r"), ("r", "m")), ("*", "m"), sizes, "auto", ((0, 1), (0, 1)))
    arrays = [rng.standard_normal(shape) for shape in ((50, 40), (40, 2), (2, 30))]
    assert [set(pair) for pair in made.links] == [{0, 1}, {2, 3}]
    assert push(made, arrays, np, 99)[1] == {}
    ((number, value),) = push(made, arrays, np, 100)[1].items()
    assert number == 3
    assert np.allclose(np.sort(value.ravel()), np.sort((arrays[0] @ arrays[1]).ravel()))


def test_scratch_does_everything_but_what_is_returned(made):
    """Results must not live in memory that is used again."""
    plan, arrays = made

    class Spoiled:
        def __init__(self):
            self.made = []

        def __getattr__(self, name):
            return getattr(np, name)

        def matmul(self, a, b):
            self.made.append(np.matmul(a, b))
            return self.made[-1]

    scratch = Spoiled()
    result, kept = push(plan, arrays, np, 0, scratch)
    found = pull(plan, arrays, kept, result, [True] * len(arrays), np, scratch)
    expected = pull(plan, arrays, {}, run(plan, arrays), [True] * len(arrays), np)
    for x in scratch.made:
        x.fill(np.nan)
    assert np.allclose(result, run(plan, arrays))
    assert all(np.allclose(a, b) for a, b in zip(found, expected, strict=True))
