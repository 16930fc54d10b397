"""From weights and rules to a checkpoint: pure, the same everywhere, and clear about what it refuses."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

import tnc
from tnc import Budget, Factorization, Network, Ratio, Rule, Tolerance, compress_weights
from tnc.errors import BackendError, MatchError, UnknownNameError, WeightError

torch = pytest.importorskip("torch")
MPO, SVD, TUCKER = (tnc.decompositions[name] for name in ("mpo", "svd", "tucker"))


def model(rng, dtype="float64"):
    return {
        "body.0.weight": rng.standard_normal((16, 24)).astype(dtype),
        "body.0.bias": rng.standard_normal(16).astype(dtype),
        "body.1.weight": rng.standard_normal((16, 8, 3, 3)).astype(dtype),
        "head.weight": rng.standard_normal((10, 16)).astype(dtype),
        "steps": np.array(7),
    }


# ------------------------------------------------------------------ what is done


def test_one_decomposition_for_everything(rng):
    weights = model(rng)
    found = compress_weights(weights, "svd", rank=2)
    assert list(found) == list(weights)
    assert set(found.factorized) == {"body.0.weight", "body.1.weight", "head.weight"}
    assert found["body.0.bias"] is weights["body.0.bias"] and found["steps"] is weights["steps"]
    for name, entry in found.factorized.items():
        assert entry.dense().shape == weights[name].shape and entry.network.ranks == (2,)


def test_the_first_rule_that_matches_wins(rng):
    rules = [Rule("head*", None), Rule("body.0*", "mpo(order=2)", 3), Rule("*weight", "svd", 2)]
    found = compress_weights(model(rng), rules)
    assert found.methods == {"body.0.weight": "mpo(order=2)", "body.1.weight": "svd"}
    assert "head.weight" not in found.factorized and "head.weight" not in {row.name for row in found.report.rows}


def test_the_report(rng):
    weights = model(rng)
    found = compress_weights(weights, [Rule("body.0*", "mpo", 1000), Rule("*weight", "svd", Ratio(0.3))])
    rows = {row.name: row for row in found.report.rows}
    assert list(rows) == ["body.0.weight", "body.1.weight", "head.weight"]
    assert found.report.total == sum(x.size for x in weights.values())
    assert rows["body.0.weight"].method == "dense"  # rank 1000 is the whole weight
    row, entry = rows["head.weight"], found["head.weight"]
    assert row.method == "svd" and row.shape == (10, 16) and row.ranks == entry.network.ranks == (1,)
    assert row.before == 160 and row.after == entry.n_params == 26 and row.nominal == 26
    assert row.error == pytest.approx(entry.error(weights["head.weight"])) and row.seconds > 0
    assert found.n_params == found.report.total_after


def test_the_report_knows_the_ranks_as_asked(rng):
    weight = rng.standard_normal((64, 64))
    found = compress_weights({"w": weight}, MPO(rows=(2, 4, 8), columns=(2, 4, 8)), rank=10)
    row = found.report.rows[0]
    assert row.ranks == (4, 10) and row.after == found["w"].n_params == 16 + 640 + 640
    assert row.nominal == 40 + 1600 + 640


def test_nothing_given_is_modified(place, rng):
    weights = {k: place.from_numpy(v) for k, v in model(rng).items()}
    before, order = {k: place.to_numpy(v).copy() for k, v in weights.items()}, list(weights)
    kept = dict(weights)
    for rank in (2, 0.3, "tolerance:0.9", "budget:0.4"):
        compress_weights(weights, "mpo", rank=rank)
    assert list(weights) == order and all(weights[k] is kept[k] for k in order)
    assert all(np.array_equal(place.to_numpy(weights[k]), before[k]) for k in order)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_result_everywhere(dtype, place, rng):
    weights = model(rng, dtype)
    rules = [Rule("body.0*", "mpo", Ratio(0.4)), Rule("*.1.*", "tucker", Tolerance(0.8)), Rule("*weight", "svd", 3)]
    host = compress_weights(weights, rules)
    there = compress_weights({k: place.from_numpy(v) for k, v in weights.items()}, rules)
    close = 1e-8 if dtype == "float64" else 1e-3
    assert {row.name: row.ranks for row in there.report.rows} == {row.name: row.ranks for row in host.report.rows}
    for mine, theirs in zip(there.report.rows, host.report.rows, strict=True):
        assert mine.error == pytest.approx(theirs.error, rel=close)
    for name, entry in there.factorized.items():
        dense = place.to_numpy(entry.dense())
        assert all(place.holds(core) and core.dtype == getattr(place.xp, dtype) for core in entry.cores)
        np.testing.assert_allclose(dense, host[name].dense(), atol=close * np.abs(weights[name]).max())


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_fits_elsewhere_come_home(backend, place, rng):
    weights = {k: place.from_numpy(v) for k, v in model(rng).items()}
    found = compress_weights(weights, "svd", rank=3, backend=backend)
    with tnc.use_backend(backend):
        again = compress_weights(weights, "svd", rank=3)
    for checkpoint in (found, again):
        for entry in checkpoint.factorized.values():
            assert all(place.holds(core) for core in entry.cores)


@pytest.mark.parametrize("backend", [None, "numpy", "torch"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes(backend, dtype, rng):
    weight = torch.from_numpy(rng.standard_normal((16, 24))).to(getattr(torch, dtype))
    found = compress_weights({"w": weight}, "svd", rank=4, backend=backend)
    assert all(core.dtype == weight.dtype for core in found["w"].cores)
    entry = found["w"].map(torch.Tensor.double)
    assert found.report.rows[0].error == pytest.approx(entry.error(weight.double()), rel=1e-3)


def test_parameters_that_need_gradients():
    layer = torch.nn.Linear(24, 16)
    for name in ("svd", "mpo", "tucker"):
        found = compress_weights(dict(layer.named_parameters()), name, rank=2)
        assert not any(core.requires_grad for core in found["weight"].cores)
        assert found["bias"] is layer.bias and found["weight"].error(layer.weight) == found.report.rows[0].error
    assert layer.weight.requires_grad and layer.weight.grad is None


def test_the_seed_reaches_the_fit(rng):
    weights = {"w": rng.standard_normal((16, 24))}
    seeds = []

    class Watch(SVD):
        def fit(self, x, network, *, seed=0, metric=None):
            seeds.append(seed)
            return super().fit(x, network, seed=seed)

    compress_weights(weights, Watch(), rank=2, seed=11)
    assert seeds == [11]


def test_progress_sees_every_weight(rng):
    calls = []

    def progress(jobs, **options):
        calls.append((len(list(jobs)), options))
        return jobs

    compress_weights(model(rng), "svd", rank=2, progress=progress)
    compress_weights(model(rng), "svd", rank=Budget(0.5), progress=progress)
    assert [count for count, _ in calls] == [3, 1]
    assert calls[0][1] == {"total": 3, "description": "factorizing"}


def test_a_budget_is_shared_by_its_rule(rng):
    weights = model(rng)
    found = compress_weights(weights, [Rule("head*", "svd", 2), Rule("*weight", "svd", Budget(0.4))])
    shared = [row for row in found.report.rows if row.name != "head.weight"]
    assert sum(row.after for row in shared) <= 0.4 * sum(row.before for row in shared)


def test_weights_of_zero_size_stay_as_they_are():
    weights = {"none": np.zeros((0, 5)), "some": np.ones((6, 6))}
    for rank in (2, 0.5, "tolerance:0.1", "budget:0.7"):
        found = compress_weights(weights, "svd", rank=rank)
        assert found["none"] is weights["none"] and "some" in found.factorized


def test_weights_of_zeros(rng):
    for rank in (2, 0.5, "tolerance:0.1", "budget:0.9"):
        for name in ("svd", "mpo", "tucker"):
            found = compress_weights({"w": np.zeros((12, 18))}, name, rank=rank)
            assert found.report.rows[0].error == 0.0 and not found.weights()["w"].any()


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize("rules", [[], ["svd"], [None], 3, None, [Rule("*", None), "svd"]], ids=repr)
def test_what_are_no_rules(rules, rng):
    with pytest.raises(MatchError, match=r"pass tnc\.Rule"):
        compress_weights(model(rng), rules)


def test_a_rule_that_matches_nothing(rng):
    with pytest.raises(MatchError, match=r"rule 'fc\*' matches no weight. Names: body.0.weight, body.0.bias, body.1"):
        compress_weights(model(rng), [Rule("*", "svd", 2), Rule("fc*", "svd", 2)])


def test_names_are_listed_up_to_forty():
    weights = {f"w{k}": np.ones((4, 4)) for k in range(50)}
    with pytest.raises(MatchError, match=r"w39, \.\.\. \(50 in all\)"):
        compress_weights(weights, Rule("x", "svd", 2))


def test_no_weights_at_all():
    with pytest.raises(MatchError, match=r"rule '\*' matches no weight. Names: none"):
        compress_weights({}, "svd", rank=2)


def test_rules_that_match_nothing_to_factorize(rng):
    weights = {"bias": rng.standard_normal(5), "ids": np.ones((3, 3), np.int64)}
    with pytest.raises(
        MatchError, match=r"no floating-point weight of two or more axes. Weights: bias \(5,\) float64, ids"
    ):
        compress_weights(weights, "svd", rank=2)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_are_refused_where_they_were_meant(dtype, place, rng):
    weights = {"w": place.from_numpy(rng.standard_normal((6, 6))), "ids": place.from_numpy(np.ones((6, 6), dtype))}
    with pytest.raises(WeightError, match=rf"ids has dtype .*{dtype}: only real floating-point weights"):
        compress_weights(weights, Rule("i*", "svd", 2))
    assert list(compress_weights(weights, "svd", rank=2).factorized) == ["w"]  # "*" passes over buffers


def test_complex_weights_are_refused(place):
    weights = {"rotary": place.from_numpy(np.ones((6, 6), np.complex64))}
    for rules in (Rule("rotary", "svd", 2), Rule("*", "svd", 2)):
        with pytest.raises(WeightError, match=r"rotary has dtype .*complex64: only real floating-point weights"):
            compress_weights(weights, rules)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite(value, place, rng):
    bad = rng.standard_normal((6, 8))
    bad[3, 4] = value
    weights = {"good": place.from_numpy(rng.standard_normal((6, 8))), "layer.7.weight": place.from_numpy(bad)}
    with pytest.raises(
        WeightError, match=r"layer.7.weight has entries that are NaN or infinite: repair it, or leave it"
    ):
        compress_weights(weights, "svd", rank=2)
    assert compress_weights(weights, [Rule("layer.7*", None), Rule("*", "svd", 2)]).factorized.keys() == {"good"}
    assert compress_weights(weights, Rule("good", "svd", 2)).factorized.keys() == {"good"}


def test_the_meta_device():
    weights = {"w": torch.ones(6, 8, device="meta")}
    with pytest.raises(WeightError, match=r"w is on the meta device and has no values: load the weights before"):
        compress_weights(weights, "svd", rank=2)


@pytest.mark.parametrize("thing", [[[1.0, 2.0]], 3.0, None, "text"], ids=repr)
def test_what_is_no_array(thing, rng):
    with pytest.raises(WeightError, match=r"layer.3: .* is no array of a known library"):
        compress_weights({"w": rng.standard_normal((4, 4)), "layer.3": thing}, "svd", rank=2)


def test_an_unknown_backend(rng):
    with pytest.raises(UnknownNameError, match=r"Did you mean 'torch'\?"):
        compress_weights(model(rng), "svd", rank=2, backend="torhc")
    with pytest.raises(BackendError, match="no device 'cuda:77'"):
        compress_weights(model(rng), "svd", rank=2, backend="torch:cuda:77")


# ------------------------------------------------------------------ large ranks


def test_a_network_as_large_as_the_weight_is_not_used(rng):
    found = compress_weights({"w": rng.standard_normal((6, 8))}, "svd", rank=6)
    row = found.report.rows[0]
    assert not found.factorized and row.method == "dense" and "would keep 84 of 48 parameters" in row.note


def test_any_library_of_the_standard(rng):
    x = array_api_strict.asarray(rng.standard_normal((12, 18)))
    for name in ("svd", "mpo", "tucker"):
        entry = compress_weights({"w": x}, name, rank=2)["w"]
        assert isinstance(entry, Factorization) and isinstance(entry.network, Network)
        assert type(entry.dense()) is type(x)


# ------------------------------------------------------------------ only predicted


@pytest.mark.parametrize("rank", [3, 0.5, "tolerance:0.7", "budget:0.5"])
def test_a_dry_run_foresees_the_rows(rng, rank):
    weights = model(rng)
    predicted = compress_weights(weights, "svd", rank=rank, dry_run=True)
    foreseen = predicted.report
    report = compress_weights(weights, "svd", rank=rank).report
    assert not predicted.factorized and foreseen.total == report.total
    for row, done in zip(foreseen.rows, report.rows, strict=True):
        assert (row.name, row.method, row.ranks, row.after) == (done.name, done.method, done.ranks, done.after)
        assert row.method == "dense" or (row.error is None and row.predicted == pytest.approx(done.error**2))


def test_a_dry_run_of_ties_and_of_errors(rng):
    weight = rng.standard_normal((8, 9))
    foreseen = compress_weights({"a": weight, "b": weight}, "svd", rank=2, dry_run=True).report
    assert [row.method for row in foreseen.rows] == ["svd", "tied"]
    with pytest.raises(MatchError, match="matches no weight"):
        compress_weights({"a": weight}, [Rule("b", "svd", 2)], dry_run=True)


def test_a_dry_run_does_not_fit(rng):
    class Never(SVD):
        def fit(self, x, network, *, seed=0, metric=None):
            raise AssertionError("a dry run fits nothing")

    rows = compress_weights({"a": rng.standard_normal((8, 9))}, Never(), rank=0.5, dry_run=True).report.rows
    assert rows[0].method == "never" and 0 < rows[0].predicted < 1
