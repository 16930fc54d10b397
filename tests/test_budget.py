"""Budget: one allowance for many weights, spent where it helps most."""

from __future__ import annotations

import pytest

from tests.errors import error_of
from tests.ranked import CP, PLUGINS, weight_of
from tnc import Budget, Network, Ratio
from tnc.errors import PromiseError, RankError


def test_budget_is_shared_where_it_helps_most(rng):
    weights = {
        "flat": rng.standard_normal((40, 40)),
        "steep": weight_of((40, 40), power=3.0),
        "long": weight_of((20, 90), power=0.5),
    }
    size = sum(w.size for w in weights.values())
    for plugin in (PLUGINS["svd"], PLUGINS["mpo"]):
        shared = Budget(0.3).assign(weights, plugin)
        alone = Ratio(0.3).assign(weights, plugin)
        assert list(shared) == list(weights)
        kept = {name: n.n_params if isinstance(n, Network) else weights[name].size for name, n in shared.items()}
        assert sum(kept.values()) <= 0.3 * size

        def total(networks, plugin=plugin):
            return sum(error_of(weights[k], plugin, n) ** 2 for k, n in networks.items() if isinstance(n, Network))

        assert total(shared) <= total(alone) + 1e-9
        assert kept["steep"] < kept["flat"]


def test_budget_counts_what_stays_dense(rng):
    weights = {"small": rng.standard_normal((2, 2)), "large": rng.standard_normal((40, 40))}
    chosen = Budget(0.3).assign(weights, PLUGINS["svd"])
    assert isinstance(chosen["small"], PromiseError)
    assert chosen["large"].n_params + 4 <= 0.3 * 1604


def test_a_whole_budget_keeps_weights_dense(rng):
    chosen = Budget(1.0).assign({"a": rng.standard_normal((9, 9)), "b": rng.standard_normal((8, 8))}, PLUGINS["svd"])
    for name, found in chosen.items():
        assert isinstance(found, PromiseError) or found.n_params < {"a": 81, "b": 64}[name]


def test_budget_that_rank_one_exceeds(rng):
    weights = {"a": rng.standard_normal((9, 9)), "b": rng.standard_normal((8, 8))}
    with pytest.raises(RankError, match=r"budget:0.01: rank 1 of svd already keeps more .*'a', 'b'"):
        Budget(0.01).assign(weights, PLUGINS["svd"])


def test_budget_of_networks_that_are_no_trees(rng):
    weights = {"a": rng.standard_normal((24, 24)), "b": rng.standard_normal((12, 24))}
    chosen = Budget(0.3).assign(weights, CP())
    assert all(network.n_params <= 0.3 * weights[name].size for name, network in chosen.items())


def test_budget_for_one_weight_is_its_ratio(rng):
    weight = rng.standard_normal((24, 24))
    assert Budget(0.3).choose(weight, PLUGINS["svd"]) == Ratio(0.3).choose(weight, PLUGINS["svd"])
