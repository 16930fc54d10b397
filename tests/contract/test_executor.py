"""Reverse mode of plans: the adjoint of every operand, on every library."""

from __future__ import annotations

import numpy as np
import pytest

from tnc.contract.executor import Executor, run
from tnc.contract.plans import plan

CASES = {
    "one operand": ([("a", "b")], ("b", "a")),
    "pair": ([("a", "b"), ("b", "c")], ("c", "a")),
    "batched": ([("*", "b", "r"), ("r", "b", "c")], ("*", "b", "c")),
    "spread": ([("*", "r", "."), ("m", "r")], ("*", "m", ".")),
    "spread, narrow": ([("*", "x", "u"), ("y", "x")], ("*", "y", "u")),
    "sum of outer": ([("*", "a"), ("b",)], ("b", "*", "a")),
    "train": ([("*", "n", "o"), ("m", "n", "r"), ("r", "p", "o")], ("*", "m", "p")),
    "train, rebuilt first": ([("*", "n", "o"), ("m", "n", "r"), ("r", "p", "o")], ("*", "m", "p"), ((1, 2), (0, 1))),
    "ring": ([("*", "n", "o"), ("s", "n", "r"), ("r", "m", "t"), ("t", "o", "s")], ("*", "m")),
    "hyperedge": ([("*", "n", "o"), ("m", "r"), ("n", "r"), ("o", "r")], ("*", "m")),
}
SIZES = {
    "a": 3,
    "b": 4,
    "c": 5,
    "r": 2,
    "n": 3,
    "o": 4,
    "m": 5,
    "p": 6,
    "s": 2,
    "t": 3,
    "u": 2,
    "x": 5,
    "y": 40,
    "*": 7,
    ".": 6,
}


@pytest.fixture(params=CASES, ids=str)
def made(request, rng):
    """A plan and operands for it."""
    operands, output, *path = CASES[request.param]
    sizes = {i: SIZES[i] for core in operands for i in core}
    made = plan(tuple(operands), output, tuple(sizes.items()), "auto", *path)
    return made, [rng.standard_normal([sizes[i] for i in core]) for core in operands]


@pytest.mark.pairwise("what may be kept is decided from sizes alone, not from the library")
@pytest.mark.parametrize("allowed", [0, 40, 1e9])
def test_backward_is_the_adjoint_in_every_operand(made, place, rng, allowed):
    """The result is linear in each operand X: ``<g, run(dX)> == <backward(g), dX>`` for any direction dX."""
    plan, arrays = made
    moved = [place.from_numpy(x) for x in arrays]
    executor = Executor(place.xp)
    result, kept = executor.forward(plan, moved, allowed)
    g = rng.standard_normal(result.shape)
    found = executor.backward(plan, moved, kept, place.from_numpy(g), [True] * len(moved))
    assert np.allclose(place.to_numpy(result), run(plan, arrays), rtol=1e-12)
    for k, x in enumerate(arrays):
        way = rng.standard_normal(x.shape)
        ahead = run(plan, [way if j == k else other for j, other in enumerate(arrays)])
        assert found[k].shape == x.shape
        assert np.isclose(np.vdot(g, ahead), np.vdot(place.to_numpy(found[k]), way), rtol=1e-10)


def test_a_narrow_product_with_one_matrix_is_among_them():
    """Its gradient is one product, where sums of many would be larger than copies of the factors."""
    operands, output = CASES["spread, narrow"]
    found = plan(tuple(operands), output, tuple((i, SIZES[i]) for i in ("*", "x", "u", "y")))
    (step,), (work, *_) = found.steps, found.work
    assert step.spread and work.m * work.k > (work.m + work.k) * work.n


def test_only_what_is_needed(made):
    plan, arrays = made
    executor = Executor(np)
    result, kept = executor.forward(plan, arrays)
    assert kept == {}
    needed = [k == 0 for k in range(len(arrays))]
    found = executor.backward(plan, arrays, kept, result, needed)
    assert [x is not None for x in found] == needed
    assert executor.backward(plan, arrays, kept, result, [False] * len(arrays)) == [None] * len(arrays)


def test_small_intermediates_are_kept_within_the_allowance(rng):
    sizes = (("*", 50), ("n", 40), ("r", 2), ("m", 30))
    made = plan((("*", "n"), ("n", "r"), ("r", "m")), ("*", "m"), sizes, "auto", ((0, 1), (0, 1)))
    arrays = [rng.standard_normal(shape) for shape in ((50, 40), (40, 2), (2, 30))]
    assert [set(pair) for pair in made.links] == [{0, 1}, {2, 3}]
    assert Executor(np).forward(made, arrays, 99)[1] == {}
    ((number, value),) = Executor(np).forward(made, arrays, 100)[1].items()
    assert number == 3
    assert np.allclose(np.sort(value.ravel()), np.sort((arrays[0] @ arrays[1]).ravel()))


def test_the_workspace_holds_everything_but_what_is_returned(made):
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

    spoiled = Spoiled()
    executor = Executor(np, spoiled)
    result, kept = executor.forward(plan, arrays)
    found = executor.backward(plan, arrays, kept, result, [True] * len(arrays))
    expected = Executor(np).backward(plan, arrays, {}, run(plan, arrays), [True] * len(arrays))
    for x in spoiled.made:
        x.fill(np.nan)
    assert np.allclose(result, run(plan, arrays))
    assert all(np.allclose(a, b) for a, b in zip(found, expected, strict=True))
