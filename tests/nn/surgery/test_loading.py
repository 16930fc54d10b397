"""From a checkpoint into a model and back, and what happens when it does not go as asked: nothing."""

from __future__ import annotations

import copy

import pytest

import tnc
from tnc.errors import CheckpointError, MatchError, TncError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here


class Net(nn.Module):
    """A little of everything, and a buffer of two axes."""

    def __init__(self, width=24):
        super().__init__()
        self.table = nn.Embedding(24, 18, padding_idx=3)
        self.body = nn.Sequential(nn.Linear(18, width), nn.ReLU(), nn.Linear(width, 18, bias=False))
        self.rnn = nn.GRU(18, 12, batch_first=True)
        self.kernel = nn.Conv1d(12, 8, 3)
        self.matrix = nn.Parameter(torch.randn(8, 12))
        self.register_buffer("positions", torch.randn(5, 18) @ torch.ones(18, 18))

    def forward(self, x):
        hidden = self.rnn(self.body(self.table(x) + self.positions))[0]
        return self.kernel(hidden.mT).mean(-1) @ self.matrix


@pytest.fixture
def model(planted):
    made = planted.plant(Net().double())
    planted.plant(made.body, "mpo(order=2)")
    with torch.no_grad():
        made.table.weight[3] = made.table.weight[4]  # trained: not zero, but of the rank of the rest
    return made


@pytest.fixture
def words():
    return torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


RULES = [tnc.Rule("body.*", "mpo(order=2)", 2), tnc.Rule("?*", "svd", 2)]
WEIGHTS = {"table.weight", "body.0.weight", "body.2.weight", "kernel.weight", "matrix"} | {
    f"rnn.weight_{kind}_l0" for kind in ("ih", "hh")
}

# -------------------------------------------------------------------- round trips


@pytest.mark.parametrize("through", ["memory", "file", "numpy"])
def test_a_compressed_state_dict_goes_into_a_fresh_model(planted, model, words, execution, tmp_path, through):
    """As the command line does it: no model is there when the weights are compressed, and buffers look like weights."""
    state = model.state_dict()
    if through == "numpy":
        state = {name: tensor.numpy() for name, tensor in state.items()}
    checkpoint = tnc.compress_weights(state, RULES)
    assert set(checkpoint.factorized) == WEIGHTS | {"positions"}
    if through == "file":
        checkpoint.save(tmp_path / "small.safetensors")
        checkpoint = tnc.load(tmp_path / "small.safetensors")
    fresh = tnc.install(Net().double(), checkpoint, execution=execution)
    assert planted.gap(fresh(words), model(words)) < 1e-12
    assert {row.name for row in fresh.tnc_report.rows} >= WEIGHTS
    assert set(tnc.compress(copy.deepcopy(model), RULES).state_dict()) == set(fresh.state_dict())


@pytest.mark.parametrize("tuned", [False, True])
def test_save_and_load(planted, model, words, execution, tmp_path, tuned):
    small = tnc.compress(model, RULES, execution=execution)
    if tuned:
        planted.total(small(words)).backward()
        torch.optim.SGD(small.parameters(), lr=1e-3).step()
    tnc.nn.save(small, tmp_path / "small.safetensors")
    fresh = tnc.nn.load(Net().double(), tmp_path / "small.safetensors", execution=execution)
    assert torch.equal(fresh(words), small(words))
    assert fresh.tnc_report.to_json() == small.tnc_report.to_json()
    assert {name: p.requires_grad for name, p in fresh.named_parameters()} == {
        name: p.requires_grad for name, p in small.named_parameters()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_the_models(planted, model, words, dtype, tmp_path):
    tnc.nn.save(tnc.compress(model.to(dtype), RULES), tmp_path / "small.safetensors")
    fresh = tnc.nn.load(Net().to(dtype), tmp_path / "small.safetensors")
    assert {p.dtype for p in fresh.parameters()} == {dtype}
    same = zip(fresh.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_state_dicts_pass_between_compressed_models(planted, model, words):
    first, second = (tnc.compress(one, RULES) for one in (copy.deepcopy(model), planted.plant(Net().double(), rank=1)))
    second.load_state_dict(first.state_dict(), strict=True)
    first.eval(), second.eval()
    assert torch.equal(first(words), second(words))
    with pytest.raises(RuntimeError, match=r"table\.tnc_weight\.0"):
        second.load_state_dict(model.state_dict())  # torch says which names are there


def test_install_over_a_compressed_model(planted, model, words):
    checkpoint = tnc.compress_weights(model.state_dict(), RULES)
    used = tnc.compress(planted.plant(Net().double(), rank=1), tnc.Rule("?*", "svd", 3))
    tnc.install(used, checkpoint)
    assert planted.gap(used(words), model(words)) < 1e-12
    assert used.body[0].tnc_weight.network.ranks == checkpoint["body.0.weight"].network.ranks


def test_uninstall_gives_the_model_back(planted, model, words):
    before = planted.snapshot(model)
    names = [name for name, _ in model.named_parameters()]
    small = tnc.compress(copy.deepcopy(model), RULES)
    dense = tnc.nn.uninstall(small)
    assert dense is small and planted.gap(dense(words), model(words)) < 1e-12
    assert [name for name, _ in dense.named_parameters()] == names
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    structure = [(name, [key for key, _ in attributes]) for name, (_, attributes) in before[0].items()]
    after = planted.snapshot(dense)[0].items()
    assert [(name, sorted(key for key, _ in attributes)) for name, (_, attributes) in after] == [
        (name, sorted(keys)) for name, keys in structure
    ]
    assert planted.snapshot(tnc.nn.uninstall(model)) == before  # nothing to do for a dense model
    assert {row.method for row in tnc.compress(dense, RULES).tnc_report.rows} == {"mpo(order=2)", "svd"}


def test_a_copy_is_independent(planted, model, words):
    small = tnc.compress(model, [tnc.Rule("rnn.weight_ih*", "svd", 2), tnc.Rule("table*", "svd", 2)])
    expected = small(words).detach()
    twin = copy.deepcopy(small)
    assert torch.equal(twin(words), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    tnc.compress(twin, [tnc.Rule("rnn.weight_hh*", "svd", 2)])  # torch keeps properties on a class the two share
    tnc.nn.uninstall(twin)
    assert torch.equal(small(words), expected)
    tnc.nn.uninstall(small)
    assert planted.gap(small(words), expected) < 1e-12


# ------------------------------------------------------------------ other architectures


def test_another_architecture_is_told_whole(planted, model):
    checkpoint = tnc.compress_weights(model.state_dict(), RULES)
    other = Net(width=30)
    other.extra, other.body = nn.Linear(4, 4), other.body[:2]
    for target in (other, tnc.compress(copy.deepcopy(other), "svd", rank=2)):
        before = planted.snapshot(target)
        with pytest.raises(CheckpointError) as caught:
            tnc.install(target, checkpoint)
        said = str(caught.value)
        assert "missing from the checkpoint: extra.weight, extra.bias" in said
        assert "unexpected: body.2.weight" in said
        assert "body.0.weight (24, 18) for (30, 18)" in said and "body.0.bias (24,) for (30,)" in said
        assert planted.snapshot(target) == before


def test_not_strict_takes_what_is_there(planted, model, words):
    checkpoint = tnc.compress_weights(model.state_dict(), RULES)
    other = Net().double()
    other.extra = nn.Linear(4, 4).double()
    del other.body[2]
    kept = other.extra.weight
    tnc.install(other, checkpoint, strict=False)
    assert other.extra.weight is kept and type(other.body[0]) is tnc.nn.Linear
    assert planted.gap(other.table(words), model.table(words)) < 1e-12
    with pytest.raises(CheckpointError, match=r"body\.0\.weight \(24, 18\) for \(30, 18\)"):
        tnc.install(Net(width=30), checkpoint, strict=False)
    with pytest.raises(CheckpointError, match=r"missing from the checkpoint: 0\.weight"):
        tnc.install(nn.Sequential(nn.Linear(24, 18)), checkpoint, strict=False)  # not one name in common


def test_a_model_without_values_takes_them(planted, model, words):
    checkpoint = tnc.compress_weights(model.state_dict(), RULES)
    fresh = Net().double()
    for part in fresh.modules():
        part._parameters.update(
            {name: nn.Parameter(p.to("meta")) for name, p in part._parameters.items() if p is not None}
        )
    tnc.install(fresh, checkpoint)
    assert planted.gap(fresh(words), model(words)) < 1e-12
    assert planted.gap(tnc.install(Net().double().to("meta"), checkpoint)(words), model(words)) < 1e-12
    other = Net().double()
    other.register_buffer("scale", torch.ones(3), persistent=False)
    with pytest.raises(CheckpointError, match=r"buffers on the meta device that no file holds: scale"):
        tnc.install(other.to("meta"), checkpoint)
    with pytest.raises(WeightError, match=r"matrix is on the meta device"):
        tnc.compress(Net().to("meta"), tnc.Rule("?*", "svd", 2))


def test_an_unknown_execution_is_refused_first(planted, model):
    before, checkpoint = planted.snapshot(model), tnc.compress_weights(model.state_dict(), RULES)
    for attempt in (
        lambda: tnc.compress(model, "svd", rank=2, execution="fast"),
        lambda: tnc.install(model, checkpoint, execution="fast"),
    ):
        with pytest.raises(TncError, match="'fast' is unknown; there are auto, dense, factorized"):
            attempt()
    assert planted.snapshot(model) == before


# ------------------------------------------------------------------------------- twice


def test_compressing_twice_is_told(planted, model):
    tnc.compress(model, RULES)
    before = planted.snapshot(model)
    for rules in ("svd", [tnc.Rule("body.0.weight", "svd", 2)]):
        with pytest.raises(MatchError, match=r"Factorized already: matrix, table\.weight.*uninstall"):
            tnc.compress(model, rules, rank=2)
    assert planted.snapshot(model) == before


def test_rules_can_be_applied_in_turns(planted, model, words):
    expected = model(words)
    at_once = tnc.compress(copy.deepcopy(model), RULES).tnc_report
    for rule in RULES:
        tnc.compress(model, [rule])
    assert planted.gap(model(words), expected) < 1e-12
    assert {row.name for row in model.tnc_report.rows} == WEIGHTS
    assert (model.tnc_report.total, model.tnc_report.after) == (at_once.total, at_once.after)
