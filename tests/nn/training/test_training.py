"""Factorized models train: exact gradients for every core, and all of torch's machinery around them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from itertools import pairwise

import pytest

import tnc
from tnc.network import Feed

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.func import functional_call, grad, stack_module_state, vmap  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from tnc.fit import random_cores  # noqa: E402


@dataclass(frozen=True)
class Fed(tnc.Decomposition):
    """A network that is fed by another through an activation; nothing to fit it with."""

    def network(self, shape, rank):
        inner = tnc.Network("a r, r b -> a b", {"a": 8, "b": 9, "r": rank})
        sizes = {"p": 8, "q": 9, "m0": shape[0], "n0": shape[1]}
        return tnc.Network("p q, p m0, q n0 -> m0 n0", sizes, Feed(inner, "tanh"))

    def fit(self, x, network, *, seed=0, metric=None):
        return [0.3 * core for core in random_cores(x, network, seed)]


def net(dtype=torch.float32):
    return nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 6)
    ).to(dtype)


def example(batch=5, dtype=torch.float32):
    return torch.randn(batch, 4, 6, dtype=dtype)


@pytest.mark.pairwise("kinds, methods and executions are told apart at different places")
@pytest.mark.parametrize(
    ("kind", "x"),
    [
        (lambda: nn.Linear(6, 8), lambda: torch.randn(3, 6)),
        (lambda: nn.Conv1d(4, 6, 3, bias=False), lambda: torch.randn(1, 4, 5)),
        (lambda: nn.ConvTranspose1d(4, 6, 3, bias=False), lambda: torch.randn(1, 4, 3)),
        (lambda: nn.Embedding(8, 6), lambda: torch.tensor([1, 5, 1])),
        (lambda: nn.Bilinear(4, 3, 4, bias=False), lambda: torch.randn(2, 4)),
    ],
    ids=["linear", "conv", "transpose", "embedding", "bilinear"],
)
def test_gradients_are_exact(planted, method, execution, kind, x):
    """Against finite differences, for every core, and for the input."""
    layer, x = kind().double(), x()
    tnc.compress(layer, method, rank=1, execution=execution)
    assert layer.tnc_report.rows[0].method != "dense"
    names, cores = zip(*layer.named_parameters(), strict=True)
    x = x.double().requires_grad_() if x.is_floating_point() else x

    def run(x, *cores):
        inputs = (x, x[:, :3]) if isinstance(layer, nn.Bilinear) else (x,)
        return functional_call(layer, dict(zip(names, cores, strict=True)), inputs)

    assert torch.autograd.gradcheck(run, (x, *cores))


@pytest.mark.pairwise("methods, executions and options are told apart at different places")
@pytest.mark.parametrize(("optimizer", "options"), [("SGD", {"lr": 0.1}), ("Adam", {"lr": 0.01})])
def test_the_loss_falls(planted, method, execution, optimizer, options):
    teacher, model = (planted.compressed(net(), method, execution=execution) for _ in range(2))
    x = example(32)
    y = 3 * teacher(x).detach()
    steps, losses = getattr(torch.optim, optimizer)(model.parameters(), **options), []
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(30):
        loss = nn.functional.mse_loss(model(x), y)
        steps.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and sum(a > b for a, b in pairwise(losses)) > 20
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_training_is_the_dense_one_on_the_manifold(planted, method, execution):
    """The gradient of a core is the dense weight's gradient, carried through the rebuild."""
    model = planted.plant(net(torch.float64), method)
    small = planted.compressed(model, method, execution=execution)
    x = example(dtype=torch.float64)
    planted.total(small(x)).backward()
    planted.total(model(x)).backward()
    for k in (0, 3, 5):
        cores = list(small[k].tnc_weight)
        expected = torch.autograd.grad(small[k].weight, cores, model[k].weight.grad)
        assert planted.gap([core.grad for core in cores], list(expected)) < 1e-12
        assert planted.gap(small[k].bias.grad, model[k].bias.grad) < 1e-12


@pytest.mark.pairwise("methods, executions and options are told apart at different places")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(planted, method, execution, reentrant):
    model = planted.compressed(planted.plant(net(torch.float64), method), method, execution=execution)
    x = example(dtype=torch.float64).requires_grad_()
    planted.total(model(x)).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    planted.total(checkpoint(model, x, use_reentrant=reentrant)).backward()
    assert planted.gap([p.grad for p in model.parameters()], expected) < 1e-12


def test_a_fed_network_trains(planted, execution):
    """Its inner tensors are recomputed in the backward pass, with the same result."""
    layer = tnc.nn.Linear(24, 16, decomposition=Fed(), rank=3, execution=execution, dtype=torch.float64)
    x = torch.randn(5, 24, dtype=torch.float64)
    assert all(p.requires_grad for p in layer.parameters()) and len(list(layer.tnc_weight)) == 4
    names, cores = zip(*layer.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda *cores: functional_call(layer, dict(zip(names, cores, strict=True)), (x[:2],)), cores
    )
    with torch.no_grad():
        plain = layer(x)
    assert planted.gap(plain, layer(x)) < 1e-12
    model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 24)).double()
    tnc.compress(model, Fed(), rank=3)
    model(x).sum().backward()
    assert all(p.grad.any() for p in model.parameters())
    dense = tnc.nn.uninstall(copy.deepcopy(model))
    assert planted.gap(dense(x), model(x)) < 1e-12


@pytest.mark.pairwise("methods meet executions in test_gradients_are_exact", together=1)
def test_models_as_functions(planted, method, execution):
    """`torch.func`: gradients per sample, and an ensemble in one call."""
    models = [
        planted.compressed(planted.plant(net(torch.float64), method), method, execution=execution) for _ in range(3)
    ]
    for k, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data += 0.01 * k
    x, model = example(dtype=torch.float64), models[0]
    state = {name: p.detach() for name, p in model.named_parameters()}

    def loss(state, one):
        return functional_call(model, state, (one[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(state, x)
    model(x).square().sum().backward()
    assert planted.gap({n: g.sum(0) for n, g in each.items()}, {n: p.grad for n, p in model.named_parameters()}) < 1e-12
    stacked, buffers = stack_module_state(models)
    base = copy.deepcopy(model).to("meta")
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(stacked, buffers)
    assert planted.gap(found, torch.stack([one(x) for one in models])) < 1e-12


def test_averages_of_weights(planted):
    model = planted.compressed(net())
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(average.module.parameters(), model.parameters(), strict=True))


@pytest.mark.pairwise("methods meet executions in test_gradients_are_exact", together=1)
def test_without_gradients(planted, method, execution):
    model = planted.compressed(net(), method, execution=execution)
    expected = model(example(0)).shape
    with torch.inference_mode():
        assert not model(example()).requires_grad and model(example(0)).shape == expected
    with torch.no_grad():
        assert not model(example()).requires_grad


def test_part_of_a_model_can_be_frozen(planted, execution):
    model = planted.compressed(net(), execution=execution)
    model[3].requires_grad_(False)
    model(example()).sum().backward()
    assert all(p.grad is None for p in model[3].parameters())
    assert all(p.grad.any() for k in (0, 5) for p in model[k].parameters())
    dense = tnc.nn.uninstall(model)
    assert [p.requires_grad for p in dense.parameters()] == [True, True, False, False, True, True]


# ------------------------------------------------------------------- the object itself


@pytest.mark.parametrize("kind", ["layers", "parametrized", "subclass"])
def test_pickling(planted, kind, tmp_path):
    """Whole models pickle, whatever their weights are part of."""
    model = {
        "layers": net,
        "parametrized": lambda: nn.Sequential(nn.GRU(16, 12)),
        "subclass": lambda: nn.Sequential(nn.MultiheadAttention(24, 4)),
    }[kind]()
    model = planted.compressed(planted.plant(model))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    if kind == "layers":
        assert torch.equal(again(x := example()), model(x)) and type(again[3]) is tnc.nn.Linear
        assert tnc.nn.uninstall(again)(x).shape == (5, 6) and type(again[3]) is nn.Linear
    else:
        x = torch.randn(5, 2, 16 if kind == "parametrized" else 24)
        x = (x,) if kind == "parametrized" else (x, x, x)
        for twin in (again, pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin[0](*x)[0], model[0](*x)[0])
            kinds = [type(module) for module in tnc.nn.uninstall(twin).modules()]
            assert kinds == [type(module) for module in tnc.nn.uninstall(copy.deepcopy(model)).modules()]


def test_the_model_shows_its_networks(planted):
    model = planted.compressed(planted.plant(nn.Sequential(nn.Linear(24, 18), nn.GRU(18, 12))))
    shown = repr(model)
    assert "Linear(" in shown and "in_features=24, out_features=18, bias=True" in shown
    assert "'m0 r0, r0 n0 -> m0 n0', shape=(18, 24), 84 parameters" in shown
    assert "shape=(36, 18)" in shown and "shape=(36, 12)" in shown
