"""Models made factorized before training: the scale of the dense weight, the counts of the papers, nothing fitted."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest

import tnc
from tnc.contract import dense
from tnc.errors import MatchError, RankError, TncError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.layers import init  # noqa: E402

SEEDS = 10


def tensorized(model, rules="svd", rank=4, **options):
    return tnc.nn.tensorize(model, rules, rank, **options)


# ------------------------------------------------------------------- variance


@pytest.mark.parametrize("method", [*sorted(tnc.decompositions), "adtn(depth=2)"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(96, 64), lambda: nn.Conv2d(16, 32, 3)], ids=["Linear", "Conv2d"])
def test_the_variance_is_the_weights(method, make):
    """Of every plugin, for a network that its author initializes another way than torch.

    The mean square is exact, to rounding. What the variance loses to a mean that is not quite 0 is at most 0.0005
    of it, on the mean over seeds; 0.005 are allowed.
    """
    ratios = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = nn.Sequential(make())
        nn.init.kaiming_normal_(model[0].weight)  # σ² = 2 / fan_in; torch's layers start with 1 / (3 fan_in)
        target = float(model[0].weight.detach().double().var(correction=0))
        assert target == pytest.approx(2 / math.prod(model[0].weight.shape[1:]), rel=0.15)
        tensorized(model, method)
        weight = model[0].weight.detach().double()
        assert float(weight.square().mean()) == pytest.approx(target, rel=1e-4)
        ratios.append(float(weight.var(correction=0)) / target)
    assert sum(ratios) / SEEDS == pytest.approx(1, abs=0.005)


ODD = {
    "Linear": lambda: nn.Linear(59, 67),
    "Conv2d": lambda: nn.Conv2d(13, 17, (3, 5)),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(24, 40, 3),
    "Embedding": lambda: nn.Embedding(101, 24),
}


@pytest.mark.parametrize("method", [*sorted(tnc.decompositions), "mpo(order=3)", "adtn(depth=2)"])
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_what_is_cut_off_is_not_measured(method, make):
    """The mean square is that of the entries which are left, whatever shape the network has."""
    model = nn.Sequential(make())
    target = float(model[0].weight.detach().double().var(correction=0))
    tensorized(model, method)
    assert float(model[0].weight.detach().double().square().mean()) == pytest.approx(target, rel=1e-4)


def test_the_shapes_above_are_overshot():
    shapes = [tuple(make().weight.shape) for make in ODD.values()]
    for method in ("adtn", "mpo", "stt"):
        assert any(tnc.decompositions[method]().network(shape, 4).shape != shape for shape in shapes)


def test_trained_weights_keep_only_their_scale():
    model = nn.Sequential(nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight.mul_(7).add_(1)
    before = model[0].weight.detach().clone()
    weight = tensorized(model)[0].weight.detach()
    assert float(weight.square().mean().sqrt()) == pytest.approx(float(before.std(correction=0)), rel=1e-4)
    assert abs(float(torch.corrcoef(torch.stack([weight.flatten(), before.flatten()]))[0, 1])) < 0.2


# ----------------------------------------------------------------- any network


def test_any_module(planted):
    """Fast layers where there are some, parametrizations elsewhere; a gradient for every core."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.rnn = nn.Embedding(40, 24, padding_idx=1), nn.GRU(24, 16)
            self.mix, self.out = nn.Parameter(torch.randn(16, 12)), nn.Linear(12, 40)

        def forward(self, x):
            return self.out(self.rnn(self.words(x))[0] @ self.mix)

    model = tensorized(Net(), tnc.Rule("?*", "svd", 2))
    assert {row.name for row in model.tnc_report.rows if row.method == "svd"} == {
        *("words.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "mix", "out.weight")
    }
    planted.total(model(torch.randint(0, 40, (5, 3)))).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert type(model.words) is tnc.nn.Embedding


def test_rules_ranks_and_report():
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10))
    last = model[2].weight.detach().clone()
    rules = [tnc.Rule("0.*", "mpo(order=2)", 3), tnc.Rule("1.*", "tucker", 0.2)]
    assert tensorized(model, rules, None, execution="factorized") is model
    first, second = model.tnc_report.rows
    assert (first.method, second.method) == ("mpo(order=2)", "tucker") and first.ranks == (3,)
    assert first.before == 64 * 48 and first.after == sum(core.numel() for core in model[0].tnc_weight)
    assert second.after <= 0.2 * 48 * 32 and model.tnc_report.total == sum((64 * 48, 48 * 32, 32 * 10, 48, 32, 10))
    assert first.error is second.error is None and "0.0000" not in str(model.tnc_report)
    assert tnc.Report.from_json(model.tnc_report.to_json()).rows == model.tnc_report.rows
    assert torch.equal(model[2].weight, last) and model[0]._tnc.execution == "factorized"


def test_in_turns_with_compress():
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32))
    tensorized(model, tnc.Rule("0.*", "svd", 3), None)
    cores = [core.detach().clone() for core in model[0].tnc_weight]
    tnc.compress(model, tnc.Rule("1.*", "svd", 3))
    assert [row.error is None for row in model.tnc_report.rows] == [True, False]
    assert all(torch.equal(a, b) for a, b in zip(cores, model[0].tnc_weight, strict=True))


def test_ties_stay():
    model = nn.ModuleDict({"a": nn.Linear(16, 24, bias=False), "b": nn.Embedding(24, 16)})
    model["b"].weight = model["a"].weight
    tensorized(model, rank=2)
    assert all(x is y for x, y in zip(model["a"].tnc_weight, model["b"].tnc_weight, strict=True))
    assert [row.method for row in model.tnc_report.rows] == ["svd", "tied"]


def test_the_seed_is_torchs():
    given, made = nn.Sequential(nn.Linear(16, 16)), []
    for seed in (3, 3, 4):
        model = copy.deepcopy(given)
        torch.manual_seed(seed)
        made.append(tensorized(model, rank=2)[0].weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_saved_and_loaded(tmp_path):
    model = tensorized(nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 12)), rank=30, clip=False)
    tnc.nn.save(model, tmp_path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 12))
    tnc.nn.load(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh(x := torch.randn(3, 24)), model(x)) and fresh[0].tnc_weight.network.ranks == (30,)


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    ("bond", "published", "clipped"),
    [(4, 1760, 1760), (8, 6720, 5280), (16, 26240, 14848 + 2560), (26, 68640, 23808 + 2560)],
)
def test_literal_ranks_count_as_papers_do(bond, published, clipped):
    """FC2 of Gao et al.: at bond 16 the second layer's cores outnumber its weight, also when clipped (2848)."""
    rules = [
        tnc.Rule("0.weight", "mpo(rows=(4,4,4,4),columns=(4,7,7,4))", bond),
        tnc.Rule("2.weight", "mpo(rows=(1,10,1,1),columns=(4,4,4,4))", bond),
    ]
    for clip, count in ((False, published), (True, clipped)):
        model = tensorized(nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), rules, None, clip=clip)
        weights = sum(p.numel() for name, p in model.named_parameters() if "bias" not in name)
        assert weights == model.tnc_report.after == count
    if bond > 8:
        assert "2,848 of 2,560" in model.tnc_report.rows[1].note and type(model[2]) is nn.Linear


def test_a_constant_stays_dense():
    """Zeros have no scale to match, and cores of zeros would never learn."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    nn.init.zeros_(model[1].weight)
    rows = tensorized(model, rank=2).tnc_report.rows
    assert [row.method for row in rows] == ["svd", "dense"] and "constant" in rows[1].note


# ------------------------------------------------------- weights too large to exist


def test_a_weight_too_large_to_exist():
    """2^28 entries that are never made; other parameters on the meta device stay there."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2**14, 2**14, bias=False), nn.LayerNorm(2**14))
    tensorized(model, "mpo(order=4)", 4, execution="factorized")
    assert {p.device.type for p in model[0].parameters()} == {"cpu"}
    assert {p.device.type for p in model[1].parameters()} == {"meta"}
    y = model[0](x := torch.randn(8, 2**14)).detach()
    # Torch's deviation, 1 / sqrt(3 fan_in), makes outputs of 1/3 the variance of the inputs.
    assert float(y.var() / x.var()) == pytest.approx(1 / 3, rel=0.25)


def test_the_padding_row_of_a_table_that_does_not_exist():
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(1000, 64, padding_idx=3))
    rows = tensorized(model, rank=2)(torch.tensor([3, 4]))
    assert not rows[0].any() and rows[1].all()


def test_tied_weights_that_do_not_exist():
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(16, 24, bias=False), "b": nn.Linear(16, 24, bias=False)})
    model["b"].weight = model["a"].weight
    tensorized(model, rank=2)
    assert all(x is y for x, y in zip(model["a"].tnc_weight, model["b"].tnc_weight, strict=True))


def test_the_device_of_what_does_not_exist():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 24))
    assert {p.device.type for p in tensorized(model, rank=2, device="meta").parameters()} == {"meta"}


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("rules", "rank", "error", "said"),
    [
        ("svd", None, RankError, "no rank given"),
        ("svd", "tolerance:0.1", RankError, "needs a weight to approximate"),
        (tnc.Rule("conv*", "svd", 2), None, MatchError, "matches no weight"),
        (tnc.Rule("1.weight", "svd", 2), None, WeightError, "NaN"),
        (tnc.Rule("2.in_proj_weight", "svd", 2), None, WeightError, "MultiheadAttention initializes it is not known"),
    ],
    ids=str,
)
def test_bad_requests_change_nothing(planted, rules, rank, error, said):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2, device="meta"))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(error, match=said):
        tensorized(model, rules, rank)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    with pytest.raises(TncError, match="auto, dense, factorized"):
        tensorized(model, tnc.Rule("0.*", "svd", 2), None, execution="quick")


@pytest.mark.parametrize(("rows", "columns"), [(64, 90), (67, 59)], ids=str)
@pytest.mark.parametrize("decomposition", ["svd", "mpo(order=3)", "ring", "cp", "stt"])
def test_random_vectors_measure_what_contraction_does(decomposition, rows, columns, monkeypatch):
    """A network that is too dear to contract with itself is measured by its action."""
    layer = tnc.nn.Linear(columns, rows, decomposition=decomposition, rank=0.2)
    cores = [core.detach() for core in layer.tnc_weight]
    exact, measured = [], []
    for found, most in ((exact, 1e9), (measured, 0)):
        monkeypatch.setattr(init, "_EXACT_FLOPS", most)
        found.append(init.mean_square(layer.tnc_weight.network, cores, (rows, columns)))
    assert exact != measured  # two ways indeed
    assert exact[0] == pytest.approx(
        float(dense(layer.tnc_weight.network, cores, (rows, columns)).square().mean()), rel=1e-4
    )
    assert measured[0] == pytest.approx(exact[0], rel=0.15)


@dataclass(frozen=True)
class Half(tnc.ranks.RankPolicy):
    """A policy of a stranger: half of the smaller side, whatever the weight holds."""

    def choose(self, weight, decomposition):
        return self.fresh(tuple(weight.shape), decomposition).clipped()

    def fresh(self, shape, decomposition):
        return decomposition.network(shape, min(shape[:2]) // 2)


@dataclass(frozen=True)
class Looking(tnc.ranks.RankPolicy):
    """A policy that needs the weight."""

    def choose(self, weight, decomposition):
        return decomposition.network(tuple(weight.shape), 2)


def test_a_policy_of_a_stranger():
    fresh = tnc.nn.tensorize(nn.Sequential(nn.Linear(64, 40)), "svd", rank=Half())
    assert fresh.tnc_report.rows[0].ranks == (20,)
    assert tnc.nn.Linear(64, 40, decomposition="svd", rank=Half()).tnc_weight.network.ranks == (20,)
    fitted = tnc.compress(nn.Sequential(nn.Linear(64, 40)), "svd", rank=Half())
    assert fitted.tnc_report.rows[0].ranks == (20,)
    with pytest.raises(RankError, match="needs a weight to approximate"):
        tnc.nn.tensorize(nn.Sequential(nn.Linear(64, 40)), "svd", rank=Looking())
