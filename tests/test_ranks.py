"""Rank policies keep their promises: never more parameters than asked, never more error than asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import pytest

import tnc
from tnc import Budget, Decomposition, Factorization, Fixed, Network, Ratio, Tolerance, compress_weights
from tnc.allocate import Spectra, free_bonds
from tnc.errors import PromiseError, RankError
from tnc.modes import balanced
from tnc.network import Feed
from tnc.ranks import policy


@dataclass(frozen=True)
class CP(Decomposition):
    """A hyperedge: fitted by least squares, its rank found by search."""

    def network(self, shape, rank):
        (a, b), (c, d) = balanced(shape[0], 2), balanced(shape[1], 2)
        return Network.of_rank("a r, b r, c r, d r -> (a b) (c d)", {"a": a, "b": b, "c": c, "d": d}, rank)


@dataclass(frozen=True)
class Even(Decomposition):
    """Ranks that are multiples of two: half of the bond passes through."""

    step = 2

    def network(self, shape, rank):
        if rank % 2 or rank < 1:
            raise RankError(f"rank {rank} is odd")
        sizes = {"m": shape[0], "n": (shape[1] + 1) // 2, "t": 2}
        return Network.of_rank("m t r, r n -> m (n t)", sizes, rank // 2)


@dataclass(frozen=True)
class Doubling(Decomposition):
    """The rank changes the topology: as many cores as its value."""

    def network(self, shape, rank):
        inner = [f"q{k}" for k in range(rank)]
        cores = [" ".join(pair) for pair in zip(["m", *inner], [*inner, "n"], strict=True)]
        return Network(", ".join(cores) + " -> m n", {"m": shape[0], "n": shape[1]} | dict.fromkeys(inner, 8))


@dataclass(frozen=True)
class Fed(Decomposition):
    """A network with a feed, which no spectrum describes."""

    def network(self, shape, rank):
        inner = Network("a r, r b -> a b", {"a": shape[0], "r": rank, "b": 2})
        return Network("m q, q n -> m n", {"m": shape[0], "q": 2, "n": shape[1]}, Feed(inner, "identity"))

    def fit(self, x, network, *, seed=0, metric=None):
        u, s, v = np.linalg.svd(x, full_matrices=False)
        cores = [np.zeros(shape, x.dtype) for shape in network.core_shapes]
        cores[0][:, 0], cores[1][0, 0], cores[2][0] = u[:, 0], 1, s[0] * v[0]
        return cores


def weight_of(shape, seed=0, power=1.0):
    """A matrix whose singular values fall like a power law, with structure of higher order on top."""
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return (u * (1.0 + np.arange(u.shape[1])) ** -power) @ v


PLUGINS = {
    "svd": tnc.decompositions["svd"](),
    "mpo": tnc.decompositions["mpo"](),
    "tucker": tnc.decompositions["tucker"](),
    "cp": CP(),
    "even": Even(),
    "doubling": Doubling(),
    "fed": Fed(),
}
plugins = pytest.mark.parametrize("plugin", PLUGINS.values(), ids=PLUGINS)


def error_of(weight, decomposition, network):
    return Factorization(network, decomposition.fit(weight, network), weight.shape).error(weight)


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
        (Budget(0.3), Budget(0.3)),
    ],
    ids=str,
)
def test_short_forms(short, long):
    assert policy(short) == long and hash(policy(short)) == hash(long)


@pytest.mark.parametrize("made", [Fixed(8), Fixed((4, 8)), Ratio(0.125), Tolerance(0.02), Budget(0.1)], ids=str)
def test_text_is_a_short_form(made):
    assert policy(str(made)) == made


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


# ------------------------------------------------------------------- Tolerance


@plugins
@pytest.mark.parametrize("tolerance", [0.5, 0.2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tolerance_is_never_exceeded(plugin, tolerance, dtype):
    weight = (weight_of((24, 30), power=2.0)).astype(dtype)
    try:
        network = Tolerance(tolerance).choose(weight, plugin)
    except PromiseError:
        assert not isinstance(plugin, type(PLUGINS["svd"]) | Even)  # a few singular values are enough
        return
    assert error_of(weight, plugin, network) <= tolerance
    assert network.n_params < weight.size


@pytest.mark.parametrize("plugin", ["mpo", "tucker", "cp"])
@pytest.mark.parametrize("tolerance", [0.6, 0.4])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_no_equal_ranks_keep_the_tolerance_with_fewer_parameters(plugin, tolerance, power):
    plugin, weight = PLUGINS[plugin], weight_of((24, 30), power=power)
    best = weight.size
    for rank in range(1, 40):
        network = plugin.network(weight.shape, rank).clipped()
        if network.n_params >= weight.size:
            break
        if error_of(weight, plugin, network) <= tolerance:
            best = network.n_params
            break
    try:
        assert Tolerance(tolerance).choose(weight, plugin).n_params <= best
    except PromiseError:
        assert best == weight.size


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tolerance_takes_the_fewest_parameters(tolerance, dtype):
    weight = weight_of((60, 80), power=2.0).astype(dtype)
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
    tails = np.sqrt(1 - np.cumsum(values) / values.sum())
    assert Tolerance(tolerance).choose(weight, PLUGINS["svd"]).ranks == (1 + int(np.argmax(tails <= tolerance)),)


@pytest.mark.parametrize("plugin", ["mpo", "tucker"])
def test_tolerance_finds_a_planted_format(plugin, rng):
    plugin = PLUGINS[plugin]
    network = plugin.network((48, 60), 3)
    weight = Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], (48, 60)).dense()
    assert Tolerance(1e-6).choose(weight, plugin).n_params <= network.n_params


def test_tolerance_by_search_finds_a_planted_rank(rng):
    network = CP().network((24, 30), 4)
    weight = Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], (24, 30)).dense()
    assert Tolerance(1e-3).choose(weight, CP()).ranks[0] in (3, 4, 5)


@plugins
def test_tolerance_that_needs_the_dense_weight(plugin, rng):
    with pytest.raises(PromiseError, match=r"as many parameters as the dense weight to reach tolerance:0.01"):
        Tolerance(0.01).choose(rng.standard_normal((24, 30)), plugin)


# ---------------------------------------------------------------------- Budget


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


# --------------------------------------- promises of the whole, to the storage


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tolerance", [0.3, 0.05])
@pytest.mark.parametrize("plugin", ["svd", "mpo"])
def test_tolerance_holds_after_rounding_to_the_stored_dtype(dtype, tolerance, plugin, tmp_path, rng):
    torch = pytest.importorskip("torch")
    made = PLUGINS[plugin]
    network = made.network((48, 60), 4)
    exact = Factorization(network, [rng.standard_normal(s) for s in network.core_shapes], (48, 60)).dense()
    exact += 0.02 * np.linalg.norm(exact) / exact.size**0.5 * rng.standard_normal(exact.shape)
    weight = torch.from_numpy(exact).to(getattr(torch, dtype))
    checkpoint = compress_weights({"w": weight}, made, rank=Tolerance(tolerance))
    assert "w" in checkpoint.factorized, checkpoint.report
    assert all(core.dtype == weight.dtype for core in checkpoint["w"].cores)
    checkpoint.save(tmp_path / "w.safetensors")
    for found in (checkpoint["w"].map(lambda c: c.double()), tnc.load(tmp_path / "w.safetensors")["w"]):
        rebuilt = np.asarray(found.map(lambda c: np.asarray(c, np.float64)).dense())
        error = np.linalg.norm(weight.double().numpy() - rebuilt) / np.linalg.norm(weight.double().numpy())
        assert error <= tolerance
        assert checkpoint.report.rows[0].error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ranks_grow_where_rounding_breaks_the_tolerance(dtype, rng):
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(weight_of((48, 60), power=2.0)).to(getattr(torch, dtype))
    svd = PLUGINS["svd"]
    network = svd.network((48, 60), 6)
    tolerance = error_of(weight.float(), svd, network) * (1 + 1e-6)  # kept before rounding, not after
    assert Tolerance(tolerance).choose(weight, svd) == network
    checkpoint = compress_weights({"w": weight}, svd, rank=Tolerance(tolerance))
    assert checkpoint.report.rows[0].ranks == (7,) and checkpoint.report.rows[0].error <= tolerance


def test_a_tolerance_below_the_rounding_stays_dense(rng):
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(rng.standard_normal((48, 2)) @ rng.standard_normal((2, 60))).bfloat16().float().bfloat16()
    checkpoint = compress_weights({"w": weight}, "svd", rank=Tolerance(5e-4))
    row = checkpoint.report.rows[0]
    assert row.method == "dense" and "bfloat16" in row.note and "tolerance:0.0005" in row.note


def test_tolerance_holds_for_bfloat16_files_on_numpy(tmp_path, rng):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from tnc.checkpoint import read_weights

    exact = rng.standard_normal((48, 4)) @ rng.standard_normal((4, 60)) + 0.05 * rng.standard_normal((48, 60))
    weight = torch.from_numpy(exact).bfloat16()
    save_file({"w": weight}, tmp_path / "in.safetensors")
    for tolerance in (0.05, 0.026, 0.0255, 0.025, 0.02):
        checkpoint = compress_weights(read_weights(tmp_path / "in.safetensors"), "svd", rank=Tolerance(tolerance))
        checkpoint.save(tmp_path / "out.safetensors")
        rebuilt = torch.from_numpy(tnc.load(tmp_path / "out.safetensors").weights()["w"]).double()
        assert float((rebuilt - weight.double()).norm() / weight.double().norm()) <= tolerance


def test_a_promise_that_cannot_be_kept_leaves_the_weight_dense(rng):
    weights = {"noise": rng.standard_normal((24, 30)), "tiny": rng.standard_normal((2, 2))}
    for rank in (Tolerance(0.01), Ratio(0.01)):
        checkpoint = compress_weights(weights, "svd", rank=rank)
        assert not checkpoint.factorized and checkpoint["noise"] is weights["noise"]
        for row in checkpoint.report.rows:
            assert row.method == "dense" and row.before == row.after == weights[row.name].size and row.error == 0.0
            assert str(rank) in row.note
