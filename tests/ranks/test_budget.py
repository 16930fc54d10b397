"""Budget: one allowance for many weights, spent where it helps most."""

from __future__ import annotations

import re

import pytest

import tnc
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
    with pytest.raises(RankError, match=r"budget:0.01 .*rank 1 of svd already keeps 34 for .*'a', 'b'.*0.234483"):
        Budget(0.01).assign(weights, PLUGINS["svd"])


def test_budget_of_networks_that_are_no_trees(rng):
    weights = {"a": rng.standard_normal((24, 24)), "b": rng.standard_normal((12, 24))}
    chosen = Budget(0.3).assign(weights, CP())
    assert 0.25 * 864 < kept(weights, chosen) <= 0.3 * 864


def test_budget_for_one_weight_is_its_ratio(rng):
    weight = rng.standard_normal((24, 24))
    assert Budget(0.3).choose(weight, PLUGINS["svd"]) == Ratio(0.3).choose(weight, PLUGINS["svd"])


def kept(weights, chosen):
    """Parameters of all weights, those that stay dense included."""
    return sum(n.n_params if isinstance(n, Network) else weights[name].size for name, n in chosen.items())


@pytest.mark.parametrize("plugin", ["cp", "ring", "btt", "str", "tt", "tucker", "mpo"])
def test_a_budget_is_met_or_the_smallest_is_named(plugin, rng):
    # Few sizes a format, small weights: some rank is too large for its own share, some weight is better off dense.
    made, refused = tnc.decompositions[plugin](), 0
    for trial in range(20):
        shapes = rng.integers(2, 13, (3, 2)).tolist()
        weights = {f"w{k}": rng.standard_normal(tuple(shape)) for k, shape in enumerate(shapes)}
        size, ratio = sum(w.size for w in weights.values()), (0.3, 0.5, 0.7)[trial % 3]
        try:
            assert kept(weights, Budget(ratio).assign(weights, made)) <= ratio * size, (shapes, ratio)
        except RankError as error:
            refused += 1
            floor = float(re.search(r"smallest budget possible is ([\d.]+)", str(error))[1])
            assert ratio < floor <= 1
            assert kept(weights, Budget(floor).assign(weights, made)) <= floor * size
            with pytest.raises(RankError):
                Budget(floor - 1e-3).assign(weights, made)
    assert refused < 20


def test_a_weight_that_is_not_fitted_counts_against_the_budget(rng):
    class Fails(tnc.decompositions["svd"]):
        def fit(self, x, network, *, seed=0, metric=None):
            cores = super().fit(x, network)
            return [3 * core for core in cores] if x.shape == (20, 20) else cores

    weights = {"bad": weight_of((20, 20), power=2.0), "good": rng.standard_normal((40, 40))}
    checkpoint = tnc.compress_weights(weights, Fails(), rank=Budget(0.4))
    bad, good = checkpoint.report.rows
    assert bad.method == "dense" and "no better than a weight of zeros" in bad.note
    assert good.method == "fails" and 400 + good.after <= 0.4 * 2000
    with pytest.raises(RankError, match=r"bad, good: budget:0.2 .*smallest budget possible is 0.24"):
        tnc.compress_weights(weights, Fails(), rank=Budget(0.2))
