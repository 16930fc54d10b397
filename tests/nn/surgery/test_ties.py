"""Tied weights are factorized once and stay tied, whatever happens to the model afterwards."""

from __future__ import annotations

import copy

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here


class Language(nn.Module):
    """A table that is read on the way in and multiplied with on the way out."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(24, 18), nn.Linear(18, 24)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


class Twins(nn.Module):
    """Two layers, one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Echo(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.near = self.far = nn.Linear(24, 24)
        self.rest = nn.Sequential(nn.Tanh(), self.near)

    def forward(self, x):
        return self.rest(self.far(x))


class Mixed(nn.Module):
    """A layer's weight that is a plain parameter elsewhere, and a recurrent layer that shares with a cell."""

    def __init__(self):
        super().__init__()
        self.layer, self.rnn, self.cell = nn.Linear(24, 18), nn.RNN(18, 24), nn.RNNCell(18, 24)
        self.matrix = self.layer.weight
        self.cell.weight_ih = self.rnn.weight_ih_l0
        self.cell.weight_hh = self.rnn.weight_hh_l0

    def forward(self, x):
        h = self.rnn(self.layer(x)[None])[0][0]
        return self.cell(h @ self.matrix.T, h)


MODELS = {
    "embedding and linear": (Language, lambda: torch.randint(0, 24, (3, 5)), 1),
    "two linear layers": (Twins, lambda: torch.randn(3, 24), 1),
    "one module twice": (Echo, lambda: torch.randn(3, 24), 1),
    "layer, parameter and cell": (Mixed, lambda: torch.randn(3, 24), 3),
}


@pytest.fixture(params=MODELS)
def case(request, planted):
    kind, x, weights = MODELS[request.param]
    model, x = planted.plant(kind().double()), x()
    return model, x.double() if x.is_floating_point() else x, weights


def cores(model):
    return [p for name, p in model.named_parameters() if "tnc_" in name]


def shared(model):
    """How often each core is found: ties as the model has them."""
    found = [p for _, p in model.named_parameters(remove_duplicate=False) if p in set(model.parameters())]
    return sorted(sum(p is q for q in found) for p in model.parameters())


def test_outputs_agree_and_the_weight_is_counted_once(planted, case, execution):
    model, x, weights = case
    small = planted.compressed(model, execution=execution)
    assert planted.gap(small(x), model(x)) < 1e-12
    assert len(cores(small)) == 2 * weights
    rows = small.tnc_report.rows
    assert sum(row.method == "svd" for row in rows) == weights
    assert any(row.method == "tied" and row.note.startswith("tied to ") for row in rows)
    assert small.tnc_report.total == sum(p.numel() for p in model.parameters())
    assert small.tnc_report.total_after == sum(p.numel() for p in small.parameters())


def test_gradients_of_all_uses_add_up(planted, case):
    model, x, _ = case
    small = planted.compressed(model)
    planted.total(small(x)).backward()
    planted.total(model(x)).backward()
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            module, _, leaf = name.rpartition(".")
            rebuilt = getattr(small.get_submodule(module), leaf)
            own = next(list(c) for n, _, _, c in tnc.nn.surgery.parameters.factorizations(small) if n == name)
            expected = torch.autograd.grad(rebuilt, own, weight.grad)
            assert planted.gap([core.grad for core in own], list(expected)) < 1e-12


@pytest.mark.parametrize("what", ["deepcopy", "cast", "state_dict", "save", "step", "install"])
def test_ties_last(planted, case, what, tmp_path):
    model, x, weights = case
    small = planted.compressed(model)
    before = shared(small)
    after = {
        "deepcopy": lambda: copy.deepcopy(small),
        "cast": lambda: small.float().double(),
        "state_dict": lambda: reloaded(planted, model, small),
        "save": lambda: saved(model, small, tmp_path),
        "step": lambda: stepped(planted, small, x),
        "install": lambda: tnc.install(emptied(model), tnc.compress_weights(model.state_dict(), "svd", rank=2)),
    }[what]()
    assert shared(after) == before and len(cores(after)) == 2 * weights
    with torch.no_grad():
        for core in cores(after):
            core.mul_(1.1)
    for name, tensor in tnc.nn.uninstall(copy.deepcopy(after)).state_dict().items():
        module, _, leaf = name.rpartition(".")
        assert planted.gap(getattr(after.get_submodule(module), leaf), tensor) < 1e-12


def emptied(model):
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    return fresh


def reloaded(planted, model, small):
    other = planted.compressed(planted.plant(copy.deepcopy(model), rank=1), rank=2)
    other.load_state_dict(small.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), small.state_dict().values(), strict=True))
    return other


def saved(model, small, folder):
    tnc.nn.save(small, folder / "small.safetensors")
    stored = tnc.load(folder / "small.safetensors")
    assert stored.n_params == sum(p.numel() for p in small.parameters())
    return tnc.nn.load(emptied(model), folder / "small.safetensors")


def stepped(planted, small, x):
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    planted.total(small(x)).backward()
    optimizer.step()
    return small


def test_uninstall_ties_again(planted, case):
    model, x, _ = case
    dense = tnc.nn.uninstall(planted.compressed(model))
    assert planted.gap(dense(x), model(x)) < 1e-12
    assert shared(dense) == shared(model)
    assert [name for name, _ in dense.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_the_padding_row_of_a_tied_table_is_kept(planted):
    """Whichever of the two comes first in the model."""
    model = nn.ModuleDict({"head": nn.Linear(18, 24), "table": nn.Embedding(24, 18, padding_idx=3)})
    model["head"].weight = planted.plant(model)["table"].weight
    with torch.no_grad():
        model["table"].weight[3] = 5.0
    tnc.compress(model, "svd", rank=2)
    assert bool((model["table"].weight[3] == 5).all()) and bool((model["head"].weight[3] == 5).all())
    x = torch.randn(7, 18)
    for execution in ("auto", "dense", "factorized"):
        model["head"]._tnc.execution = execution
        model["head"]._tnc_reschedule()
        assert torch.allclose(model["head"](x)[:, 3], 5 * x.sum(1) + model["head"].bias[3], atol=1e-4)
    tnc.nn.uninstall(model)
    assert bool((model["table"].weight[3] == 5).all()) and model["head"].weight is model["table"].weight


def test_a_rule_that_names_either_use_is_enough(planted):
    for name in ("table.weight", "head.weight"):
        model = planted.plant(Language())
        tnc.compress(model, tnc.Rule(name, "svd", 2))
        assert isinstance(model.table, tnc.nn.Embedding) and isinstance(model.head, tnc.nn.Linear)
        assert len(cores(model)) == 2


def test_parameters_that_share_memory_are_tied(planted):
    """Two Parameter objects over one tensor: torch trains them as one, so do the cores."""
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    model[1].weight = nn.Parameter(model[0].weight.data)
    tnc.compress(planted.plant(model), "svd", rank=2)
    assert len(cores(model)) == 2


def test_a_checkpoint_without_the_tied_name_is_enough(planted):
    """As Hugging Face writes them: tied names are left out of the file."""
    model = planted.plant(Language())
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    checkpoint = tnc.compress_weights(state, "svd", rank=2)
    x = torch.randint(0, 24, (3, 5))
    for fresh in (emptied(model), planted.compressed(planted.plant(Language(), rank=1))):
        assert planted.gap(tnc.install(fresh, checkpoint)(x), model(x)) < 1e-5
        assert len(cores(fresh)) == 2


def test_a_checkpoint_that_unties_is_tied_by_the_model(planted):
    model = planted.plant(Language())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = tnc.compress_weights(state, "svd", rank=2)
    assert len(checkpoint.factorized) == 2
    fresh = tnc.install(emptied(model), checkpoint)
    x = torch.randint(0, 24, (3, 5))
    assert planted.gap(fresh(x), model(x)) < 1e-5 and len(cores(fresh)) == 2


def test_a_checkpoint_that_ties_serves_a_model_that_does_not(planted):
    model = planted.plant(Language())
    fresh = emptied(model)
    fresh.head.weight = nn.Parameter(torch.zeros(24, 18))
    tnc.install(fresh, tnc.compress_weights(model.state_dict(), "svd", rank=2))
    x = torch.randint(0, 24, (3, 5))
    assert planted.gap(fresh(x), model(x)) < 1e-5
