"""One choice per weight within an allowance: the best of all choices, by brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tnc.ranks.knapsack import Option, cheapest

weights = st.lists(
    st.lists(st.builds(Option, st.integers(0, 40), st.floats(0, 10)), min_size=1, max_size=5), min_size=1, max_size=4
)


def rise(options, chosen):
    return sum(options[key][k].rise for key, k in chosen.items())


def size(options, chosen):
    return sum(options[key][k].size for key, k in chosen.items())


def best(options, allowance):
    """The smallest rise of all choices within the allowance; None if there is none."""
    fits = [c for c in product(*options.values()) if sum(option.size for option in c) <= allowance]
    return min((sum(option.rise for option in c) for c in fits), default=None)


@given(weights, st.integers(0, 120))
def test_the_best_of_all_choices(mine, allowance):
    options, chosen = dict(enumerate(mine)), cheapest(dict(enumerate(mine)), allowance)
    expected = best(options, allowance)
    if expected is None:
        assert chosen is None
        return
    assert list(chosen) == list(options)
    assert size(options, chosen) <= allowance
    assert rise(options, chosen) <= expected + 1e-9


@given(weights, st.integers(0, 120), st.integers(1, 40))
def test_more_room_is_never_worse(mine, allowance, more):
    options = dict(enumerate(mine))
    before, after = (cheapest(options, n) for n in (allowance, allowance + more))
    if before is not None:
        assert rise(options, after) <= rise(options, before) + 1e-9


@given(weights, st.integers(0, 120), st.integers(0, 3), st.builds(Option, st.integers(0, 40), st.floats(0, 10)))
def test_another_option_is_never_worse(mine, allowance, k, option):
    options = dict(enumerate(mine))
    richer = options | {k % len(mine): [*options[k % len(mine)], option]}
    before, after = cheapest(options, allowance), cheapest(richer, allowance)
    if before is not None:
        assert rise(richer, after) <= rise(options, before) + 1e-9


def test_large_sizes_use_the_allowance(rng):
    """Sizes are rounded up to cells of a grid: what this leaves unused is a small part of the allowance."""
    options = {}
    for k in range(60):
        sizes = np.unique(rng.integers(10_000, 4_000_000, 40))
        options[k] = [Option(int(n), float(1e6 / n)) for n in sizes]
    total = sum(mine[-1].size for mine in options.values())
    rises = []
    for share in (0.05, 0.1, 0.1249, 0.12501, 0.2, 0.21, 0.2501, 0.5, 0.501, 0.9):
        allowance = round(share * total)
        chosen = cheapest(options, allowance)
        assert 0.99 * allowance <= size(options, chosen) <= allowance
        rises.append(rise(options, chosen))
    assert rises == sorted(rises, reverse=True)


def test_a_finer_grid_for_small_allowances_is_remembered(rng):
    """Where the grid changes, a little more room must not lose what the finer one found."""
    options = {k: [Option(n, 1 / n) for n in rng.integers(1, 10**7, 12).tolist()] for k in range(50)}
    total = sum(max(mine).size for mine in options.values())
    for half in (total // 4, total // 8):
        near = [cheapest(options, half + more) for more in (-9000, -1, 0, 1, 2, 100, 5000, 20_000, 40_000, 80_000)]
        rises = [rise(options, chosen) for chosen in near]
        assert rises == sorted(rises, reverse=True)


def test_the_smallest_options_always_fit():
    """Where rounding up to cells would refuse the only choice there is."""
    options = {k: [Option(1_000_003, 0.5), Option(40_000_000, 0.0)] for k in range(30)}
    assert cheapest(options, 30 * 1_000_003) == dict.fromkeys(range(30), 0)
    assert cheapest(options, 30 * 1_000_003 - 1) is None
