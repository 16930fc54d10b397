"""Rank policies: what they are written as, never more parameters than asked, the same ranks everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import pytest

from tests.errors import error_of
from tests.ranked import CP, PLUGINS, Doubling, Even, Fed, plugins, weight_of
from tnc import Budget, Decomposition, Fixed, Network, Ratio, Tolerance, compress_weights
from tnc.errors import PromiseError, RankError
from tnc.ranks import policy
from tnc.ranks.allocation import Spectra, free_bonds

# ----------------------------------------------------------------- short forms


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (8, Fixed(8)),
        (np.int64(8), Fixed(8)),
        ((4, 8), Fixed((4, 8))),
        ([4, 8], Fixed((4, 8))),
        (0.1, Ratio(0.1)),
        (np.float32(0.5), Ratio(0.5)),
        (1.0, Ratio(1.0)),
        ("8", Fixed(8)),
        (" 8 ", Fixed(8)),
        ("4,8", Fixed((4, 8))),
        ("(4, 8)", Fixed((4, 8))),
        ("rank:8", Fixed(8)),
        ("0.1", Ratio(0.1)),
        ("1e-1", Ratio(0.1)),
        ("ratio:0.1", Ratio(0.1)),
        ("tolerance:0.02", Tolerance(0.02)),
        ("budget:0.1", Budget(0.1)),
        ("budget:0.33,of=flops,batch=16", Budget(0.33, of="flops", batch=16)),
        (" budget: 0.33, whole , of = bytes ", Budget(0.33, of="bytes", whole=True)),
        (Budget(0.3), Budget(0.3)),
    ],
    ids=str,
)
def test_short_forms(short, long):
    assert policy(short) == long and hash(policy(short)) == hash(long)


BUDGETS = [Budget(0.1), Budget(0.2, of="flops", batch=8), Budget(0.3, of="bytes", whole=True), Budget(0.4, whole=True)]


@pytest.mark.parametrize("made", [Fixed(8), Fixed((4, 8)), Ratio(0.125), Tolerance(0.02), *BUDGETS], ids=str)
def test_text_is_a_short_form(made):
    assert policy(str(made)) == made


BAD = ["batch=many", "batch=1.5", "batch", "whole=yes", "of=bytes,of=flops", "for=ever", "", "0.2", "of=bytes,"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (0, "rank 0"),
        (-3, "rank -3"),
        (True, "rank True"),
        (None, "rank None"),
        ((), r"rank \(\)"),
        ((4, 0), r"rank \(4, 0\)"),
        ((4, 1.5), r"rank \(4, 1.5\)"),
        (-0.1, r"Ratio\(-0.1\): a fraction .* in \(0, 1\]"),
        (0.0, r"Ratio\(0.0\)"),
        (1.5, r"Ratio\(1.5\)"),
        (float("nan"), r"Ratio\(nan\)"),
        ("0", "rank 0"),
        ("-3", "rank -3"),
        ("4,x", "rank '4,x' is not understood: write 8"),
        ("", "rank '' is not understood"),
        ("many", "rank 'many' is not understood"),
        ("share:0.1", "rank 'share:0.1' is not understood"),
        ("ratio:ten", "rank 'ratio:ten' is not understood"),
        ("ratio:2", r"Ratio\(2.0\)"),
        ("budget:0", r"Budget\(0.0\)"),
        ("budget:0.1,of=watts", r"Budget\(of='watts'\): one of parameters, bytes, flops"),
        ("budget:0.1,batch=0", r"Budget\(batch=0\)"),
        ("budget:0.1,of=flops,whole", "matched weights only"),
        *((f"budget:0.1,{bad}", "is not understood: .*of=parameters, bytes or flops; whole") for bad in BAD),
        ("budget:,of=flops", "is not understood"),
        ("tolerance:0", r"Tolerance\(0.0\): a relative error above 0"),
        ("tolerance:-1", r"Tolerance\(-1.0\)"),
        ("tolerance:nan", r"Tolerance\(nan\)"),
        ("tolerance:inf", r"Tolerance\(inf\)"),
    ],
    ids=str,
)
def test_impossible_ranks(bad, words):
    with pytest.raises(RankError, match=words):
        policy(bad)


# ----------------------------------------------------------------------- Fixed


def test_fixed_is_clipped_and_remembers_what_was_asked():
    svd, weight = PLUGINS["svd"], weight_of((6, 40))
    network = Fixed(100).choose(weight, svd)
    assert network.ranks == (6,)
    assert Fixed(100).nominal(weight.shape, svd, network) == 100 * 46
    assert Fixed((2, 3)).choose(weight_of((64, 64)), PLUGINS["mpo"]).ranks == (2, 3)


def test_one_rank_per_bond_must_match_the_bonds():
    with pytest.raises(RankError, match=r"rank \(2, 3, 4\) has 3 entries, but .* has 2 bonds"):
        Fixed((2, 3, 4)).choose(weight_of((64, 64)), PLUGINS["mpo"])


# ----------------------------------------------------------------------- Ratio


@pytest.mark.pairwise("a policy sees counts, not the plugin or the shape they come from")
@plugins
@pytest.mark.parametrize("shape", [(48, 60), (37, 50)], ids=str)
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.29, 0.15])
def test_ratio_is_never_exceeded(plugin, shape, ratio):
    weight = weight_of(shape)
    if plugin.network(shape, plugin.step).clipped().n_params > ratio * prod(shape):
        with pytest.raises(PromiseError):
            Ratio(ratio).choose(weight, plugin)
        return
    network = Ratio(ratio).choose(weight, plugin)
    assert network.n_params <= ratio * prod(shape)
    assert network == network.clipped() and network.holds(shape)


@pytest.mark.parametrize("plugin", ["svd", "mpo", "tucker", "cp"])
@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_ratio_leaves_no_room_for_one_rank_more(plugin, ratio):
    plugin, weight = PLUGINS[plugin], weight_of((48, 60))
    network = Ratio(ratio).choose(weight, plugin)
    for bond in network.bonds:
        larger = network.resize(**{bond: network.sizes[bond] + 1})
        assert larger.n_params > ratio * weight.size or larger.clipped() != larger


@pytest.mark.parametrize("plugin", ["svd", "mpo", "tucker"])
def test_a_whole_ratio_keeps_the_weight_dense(plugin, rng):
    with pytest.raises(PromiseError, match=r"ratio:1\.0"):
        Ratio(1.0).choose(rng.standard_normal((1, 6)), PLUGINS[plugin])


def test_ratio_counts_in_decimals():
    # 0.29 * 100 is 28.999999999999996 in binary: 29 parameters are 29 %.
    @dataclass(frozen=True)
    class Single(Decomposition):
        def network(self, shape, rank):
            return Network.of_rank("m r, r n -> (m) (n)", {"m": 28, "n": 1}, rank)

    assert Ratio(0.29)._allowance((10, 10)) == 29
    assert Ratio(0.1)._allowance((10, 10**9)) == 10**9
    for size in (7, 30, 5892, 1_000_003, 10**13 + 1):
        assert Ratio(0.1)._allowance((size,)) * 10 <= size


@pytest.mark.parametrize("plugin", ["mpo", "tucker"])
def test_ratio_is_at_least_as_good_as_equal_ranks(plugin):
    plugin, weight = PLUGINS[plugin], weight_of((64, 64))
    chosen = Ratio(0.2).choose(weight, plugin)
    even = max(
        (n for r in range(1, 40) if (n := plugin.network(weight.shape, r).clipped()).n_params <= 0.2 * weight.size),
        key=lambda n: n.n_params,
    )
    assert error_of(weight, plugin, chosen) <= error_of(weight, plugin, even) * 1.02


def test_ratio_gives_more_to_the_bond_that_needs_it(rng):
    # r1 carries one direction only, r2 many: equal ranks would waste parameters on r1.
    mpo = PLUGINS["mpo"].__class__(rows=(4, 4, 4), columns=(4, 4, 4))
    inner = rng.standard_normal((16, 16)) @ np.diag(1.5 ** -np.arange(16.0)) @ rng.standard_normal((16, 16))
    tensor = np.multiply.outer(rng.standard_normal((4, 4)), inner.reshape(4, 4, 4, 4))
    weight = tensor.transpose(0, 2, 4, 1, 3, 5).reshape(64, 64)
    ranks = Ratio(0.05).choose(weight, mpo).ranks
    assert ranks[0] < ranks[1]


@plugins
def test_ratio_where_rank_one_is_too_much(plugin):
    weight = weight_of((48, 60))
    with pytest.raises(
        PromiseError, match=r"rank \d of .* already keeps [\d,]+ of 2,880 parameters, more than ratio:0.001"
    ):
        Ratio(0.001).choose(weight, plugin)


# ---------------------------------------------------------------------- pieces


def test_policies_only_read(rng):
    weight = rng.standard_normal((24, 30))
    before = weight.copy()
    for made in (Fixed(2), Ratio(0.3), Tolerance(0.9), Budget(0.3)):
        made.assign({"w": weight}, PLUGINS["mpo"])
    assert np.array_equal(weight, before)


def test_bonds_that_follow_the_rank():
    assert free_bonds(PLUGINS["mpo"], (64, 64)) == ("r1", "r2")
    assert free_bonds(CP(), (16, 16)) == ("r",)
    assert free_bonds(Even(), (16, 16)) == ("r",)
    assert free_bonds(Doubling(), (16, 16)) is None
    assert free_bonds(Fed(), (16, 16)) is None


def test_spectra_bound_the_error(place, rng):
    weight, mpo = weight_of((64, 64)), PLUGINS["mpo"]
    least = mpo.network((64, 64), 1)
    spectra = Spectra.of(place.from_numpy(weight), least, ("r1", "r2"))
    for rank in (1, 3, 9):
        network = mpo.network((64, 64), rank).clipped()
        assert error_of(weight, mpo, network) ** 2 <= spectra.missed(network) + 1e-12
    assert all(energy.sum() == pytest.approx(1) for energy in spectra.energies.values())


def test_the_same_ranks_everywhere(place):
    weight = weight_of((48, 60)).astype(np.float32)
    for made in (Ratio(0.2), Tolerance(0.3), Budget(0.2)):
        for plugin in (PLUGINS["svd"], PLUGINS["mpo"]):
            here = made.assign({"w": place.from_numpy(weight)}, plugin)["w"]
            host = made.assign({"w": weight}, plugin)["w"]
            assert here == host or isinstance(here, PromiseError)


def test_a_promise_that_cannot_be_kept_leaves_the_weight_dense(rng):
    weights = {"noise": rng.standard_normal((24, 30)), "tiny": rng.standard_normal((2, 2))}
    for rank in (Tolerance(0.01), Ratio(0.01)):
        checkpoint = compress_weights(weights, "svd", rank=rank)
        assert not checkpoint.factorized and checkpoint["noise"] is weights["noise"]
        for row in checkpoint.report.rows:
            assert row.method == "dense" and row.before == row.after == weights[row.name].size and row.error == 0.0
            assert str(rank) in row.note
