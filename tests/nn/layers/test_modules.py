"""Modules nobody planned for: they keep their outputs, or are refused with the reason."""

from __future__ import annotations

import copy
import re

import pytest

import tnc
from tnc.errors import WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402


class Experts(nn.Module):
    """A mixture of experts: one parameter of three axes, as Hugging Face fuses them."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 48, 40)), nn.Parameter(torch.randn(4, 40, 48))

    def forward(self, x):
        hidden = torch.relu(torch.einsum("bi,eoi->ebo", x, self.up))
        return sum(nn.functional.linear(hidden[k], self.down[k]) for k in range(4))


class Odd(nn.Module):
    """Parameters on the root, used twice, transposed, sliced and under a name torch has plans for."""

    def __init__(self):
        super().__init__()
        self.weight, self.kernel = nn.Parameter(torch.randn(24, 24)), nn.Parameter(torch.randn(24, 18))
        self.scale, self.rows = nn.Parameter(torch.ones(18)), nn.Parameter(torch.randn(1, 18))
        self.register_buffer("mask", torch.rand(24, 24) > 0.5)

    def forward(self, x):
        x = x @ self.weight + torch.tanh(x) @ (self.weight.T * self.mask)
        return (x @ self.kernel) @ self.kernel[:12].T @ self.kernel[:12] * self.scale + self.rows


class Lists(nn.Module):
    """Parameters in torch's containers."""

    def __init__(self):
        super().__init__()
        self.stack = nn.ParameterList([nn.Parameter(torch.randn(24, 24)) for _ in range(3)])
        self.named = nn.ParameterDict({"in": nn.Parameter(torch.randn(24, 18)), "out": torch.randn(24, 18)})

    def forward(self, x):
        for matrix in self.stack:
            x = torch.tanh(x @ matrix)
        return x @ self.named["in"] + (x @ self.stack[0]) @ self.named["out"]


class Pair(nn.Module):
    """`Bilinear` takes two inputs and has a weight of three axes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(12, 9, 8)

    def forward(self, x):
        return self.inner(x[:, :12], x[:, 12:21])


@pytest.mark.pairwise("methods, executions and options are told apart at different places")
@pytest.mark.parametrize(("kind", "width"), [(Experts, 40), (Lists, 24), (Pair, 24)], ids=lambda v: str(v))
def test_parameters_of_any_module(planted, method, execution, kind, width):
    small = planted.agree(kind(), method, torch.randn(5, width), execution=execution, rank=2)
    assert isinstance(small, kind)
    assert len(small.tnc_report.rows) == len(list(kind().parameters())) - (kind is Pair)


@pytest.mark.pairwise("methods meet executions in test_parameters_of_any_module", together=1)
def test_odd_use_of_parameters(planted, method, execution):
    model = Odd().double()
    for weight in (model.weight, model.kernel):
        layer = planted.plant(nn.Linear(*weight.shape[::-1]).double(), method)
        weight.data.copy_(layer.weight.data)
    small = tnc.compress(copy.deepcopy(model), tnc.Rule("?*", method, 2), execution=execution)
    assert {row.name: row.method == "dense" for row in small.tnc_report.rows} == {
        "weight": False,
        "kernel": False,
        "rows": True,  # one row of 18: nothing to gain, and the report says so
    }
    assert "would keep" in small.tnc_report.rows[2].note
    x = torch.randn(5, 24, dtype=torch.float64)
    assert planted.gap(small(x), model(x)) < 1e-12
    small(x).sum().backward()
    assert all(p.grad.any() for p in small.parameters())
    assert list(tnc.nn.uninstall(small).state_dict()) == list(model.state_dict())


# -------------------------------------------------------------------- subclasses


class Branded(nn.Linear):
    """Someone's own layer: more attributes, more methods, torch's forward."""

    def __init__(self, *args):
        super().__init__(*args)
        self.brand = "mine"

    def doubled(self, x):
        return 2 * self(x)


class Scaled(nn.Linear):
    """Another forward: torch's is not what it runs."""

    def forward(self, input):
        return super().forward(input) * 3


class Standardized(nn.Conv2d):
    """Torch's forward, but the convolution under it is another one."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, (weight - weight.mean()) / weight.std(), bias)


@pytest.mark.pairwise("methods, executions and options are told apart at different places")
@pytest.mark.parametrize("kind", [Branded, Scaled])
def test_subclasses_of_linear(planted, method, execution, kind):
    small = planted.agree(kind(24, 18), method, torch.randn(5, 24), execution=execution)
    assert isinstance(small, kind)
    if kind is Branded:
        x = torch.randn(5, 24).double()
        assert (
            small.brand == "mine" and torch.equal(small.doubled(x), 2 * small(x)) and isinstance(small, tnc.nn.Linear)
        )


@pytest.mark.pairwise("methods meet executions in test_parameters_of_any_module", together=1)
def test_subclasses_of_a_convolution(planted, method, execution):
    small = planted.agree(Standardized(8, 12, 3), method, torch.randn(2, 8, 9, 9), execution=execution)
    assert isinstance(small, Standardized)


# ------------------------------------------------------------- reparametrized weights


@pytest.mark.parametrize("apply", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_computed_weight_is_refused(planted, apply):
    model = nn.Sequential(apply(nn.Linear(24, 18)), nn.Linear(18, 18))
    before, said = planted.snapshot(model), r"it is computed by the parametrization .*remove_parametrizations"
    with pytest.raises(WeightError, match=rf"0\.weight cannot be factorized: {said}"):
        tnc.compress(model, [tnc.Rule("0.weight", "svd", 2), tnc.Rule("1.*", "svd", 2)])
    assert planted.snapshot(model) == before
    rows = tnc.compress(copy.deepcopy(model), "svd", rank=2).tnc_report.rows  # a catch-all passes over it
    assert [(row.name, row.method) for row in rows] == [("1.weight", "svd"), ("0.weight", "dense")]
    assert re.match(said, rows[1].note)
    tnc.compress(model, [tnc.Rule("0.weight", None), tnc.Rule("*", "svd", 2)])
    assert [row.name for row in model.tnc_report.rows] == ["1.weight"]
    assert model(torch.randn(5, 24)).shape == (5, 18)


@pytest.mark.parametrize("apply", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_computed_weight_works_once_it_is_a_parameter(planted, apply):
    model = apply(nn.Linear(24, 18))
    parametrize.remove_parametrizations(model, "weight")
    planted.agree(model, "svd", torch.randn(5, 24))


class Half(nn.Module):
    def forward(self, x):
        return x / 2


@pytest.mark.pairwise("methods meet executions in test_parameters_of_any_module", together=1)
def test_a_computed_bias_stays(planted, method, execution):
    """The class torch made for it is kept, and the weight is rebuilt beside it."""
    model = nn.Linear(24, 18)
    parametrize.register_parametrization(model, "bias", Half())
    model = planted.plant(model.double(), method)
    kind, x = type(model), torch.randn(5, 24).double()
    expected = model(x)
    tnc.compress(model, method, rank=2, execution=execution)
    assert planted.gap(model(x), expected) < 1e-12
    assert sum(p.numel() for p in model.parameters()) < 24 * 18
    tnc.nn.uninstall(model)
    assert planted.gap(model(x), expected) < 1e-12
    assert (type(model).__name__, type(model).__mro__[1:]) == (kind.__name__, kind.__mro__[1:])
    parametrize.remove_parametrizations(model, "bias")
    assert planted.gap(model(x), expected) < 1e-12 and type(model) is nn.Linear


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_weights_computed_by_hooks(planted, method, name):
    """The older functions keep an original among the parameters; a hook reads it before every forward."""
    plain = planted.plant(nn.Linear(24, 18).double(), method)
    model = getattr(torch.nn.utils, name)(plain).eval()
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = model(x)
    tnc.compress(model, method, rank=2)
    (row,) = (row for row in model.tnc_report.rows if row.method != "dense")
    assert row.name == {"weight_norm": "weight_v", "spectral_norm": "weight_orig"}[name]
    assert planted.gap(model(x), expected) < 1e-12
    planted.total(model(x)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_pruned_weight_keeps_its_mask(planted):
    model = planted.plant(nn.Linear(24, 18).double())
    prune.random_unstructured(model, "weight", amount=0.5)
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = model(x)
    tnc.compress(model, "svd", rank=2)
    assert model.tnc_report.rows[0].name == "weight_orig"
    assert planted.gap(model(x), expected) < 1e-12


# ------------------------------------------------------------------------ refused


def hidden(how):
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 18))
    weight = model[1].weight
    model.keep = {"list": [weight], "tuple": (1, weight), "dict": {"w": weight}, "nested": [{"w": (weight,)}]}[how]
    return model


@pytest.mark.parametrize("how", ["list", "tuple", "dict", "nested"])
def test_a_reference_that_would_go_stale_is_refused(planted, how):
    model = hidden(how)
    before = planted.snapshot(model)
    with pytest.raises(WeightError, match=r"1\.weight is also held by the model\.keep"):
        tnc.compress(model, "svd", rank=2)
    assert planted.snapshot(model) == before
    tnc.compress(model, [tnc.Rule("1.weight", None), tnc.Rule("*", "svd", 2)])
    assert type(model[0]) is tnc.nn.Linear and type(model[1]) is nn.Linear


def test_a_reference_that_would_go_stale_is_refused_by_install(planted):
    checkpoint = tnc.compress_weights(nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 18)).state_dict(), "svd", rank=2)
    model = hidden("list")
    before = planted.snapshot(model)
    with pytest.raises(WeightError, match=r"1\.weight is also held by the model\.keep"):
        tnc.install(model, checkpoint)
    assert planted.snapshot(model) == before


def test_a_lazy_layer_is_refused_until_it_has_a_shape(planted):
    model = nn.Sequential(nn.LazyLinear(18), nn.ReLU(), nn.Linear(18, 18))
    checkpoint = tnc.compress_weights(nn.Sequential(nn.Linear(24, 18)).state_dict(), "svd", rank=2)
    for attempt in (lambda: tnc.compress(model, "svd", rank=2), lambda: tnc.install(model, checkpoint)):
        with pytest.raises(WeightError, match=r"0\.weight is not initialized yet: run the model once"):
            attempt()
    model(torch.randn(5, 24))
    planted.agree(model, "svd", torch.randn(5, 24))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_module_is_refused():
    model = nn.Sequential(nn.Linear(24, 18), torch.jit.script(nn.Linear(18, 18)))
    with pytest.raises(WeightError, match=r"1 is compiled by torch\.jit"):
        tnc.compress(model, "svd", rank=2)


# ---------------------------------------------------------------------- all the rest


def test_hooks_survive(planted):
    model = nn.Sequential(nn.Linear(24, 18), nn.RNN(18, 18))
    calls = []
    for k, module in enumerate(model):
        module.register_forward_pre_hook(lambda *_, k=k: calls.append(("before", k)))
        module.register_forward_hook(lambda *_, k=k: calls.append(("after", k)))
        module.register_full_backward_hook(lambda *_, k=k: calls.append(("back", k)))
    planted.plant(model)
    small = planted.compressed(model)
    small(torch.randn(5, 24, requires_grad=True))[0].sum().backward()
    assert sorted(calls) == sorted((when, k) for when in ("before", "after", "back") for k in range(2))


def test_frozen_weights_stay_frozen(planted, method):
    model = nn.Sequential(nn.Linear(24, 18), nn.RNN(18, 18), nn.Conv1d(18, 12, 3))
    model[0].requires_grad_(False)
    model[1].weight_ih_l0.requires_grad_(False)
    small = planted.compressed(planted.plant(model, method), method)
    frozen = {name.partition(".tnc_")[0] for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "0.bias", "1"} and not small[0].bias.requires_grad
    assert not any(p.requires_grad for p in small[1].tnc_weight_ih_l0.parameters())
    assert all(p.requires_grad for p in small[1].tnc_weight_hh_l0.parameters())
    assert all(p.requires_grad for p in small[2].parameters())
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in tnc.nn.uninstall(small).named_parameters()} == wanted


def test_the_mode_stays(planted):
    model = nn.Sequential(nn.Linear(24, 18), nn.Dropout(), nn.RNN(18, 18)).eval()
    model[1].train()
    small = planted.compressed(planted.plant(model))
    assert [m.training for m in small] == [False, True, False]
