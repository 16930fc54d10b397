"""Healing does not see the gauge: steps and decay are those of the weight, whichever cores it comes from."""

from __future__ import annotations

import copy
from functools import cache

import pytest

import tnc
from tnc.errors import TncError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import QUIET, net, small  # noqa: E402


def turned(model, scale):
    """The same weights from other cores: the first times `scale`, the last divided by it."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (model[0], model[3]):
            first, *_, last = layer.tnc_weight
            first.mul_(scale)
            last.div_(scale)
    return model


@cache
def fitted(method):
    """Compressed once for all tests, which copy it."""
    return small(net(torch.float64), method, 3)


@pytest.mark.pairwise("steps are those of the weight, whatever gauge and rate a format meets them with")
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("method", ["svd", "mpo(order=3)", "tucker", "ring", "cp", "adtn"])
@pytest.mark.parametrize("scale", [64.0, 0.037])
@pytest.mark.parametrize("rate", [None, 0.02], ids=["lr", "core_lr"])
def test_the_gauge_does_not_matter(planted, method, scale, rate):
    """Several steps with decay, from two gauges: the same weights, where one rate for all cores gives others."""
    x, y = torch.randn(4, 16, 32, dtype=torch.float64), torch.randint(10, (4, 16))
    given = fitted(method)
    ends, plain = [], []
    for model in (copy.deepcopy(given), turned(given, scale)):
        assert planted.gap(model[0].weight, given[0].weight) < 1e-12
        one = copy.deepcopy(model)
        tnc.nn.heal(model, list(zip(x, y, strict=True)), epochs=3, lr=1e-2, core_lr=rate, weight_decay=0.1, **QUIET)
        ends.append([model[k].weight for k in (0, 3, 5)])
        steps = torch.optim.AdamW(one.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(12):
            steps.zero_grad()
            nn.functional.cross_entropy(one(x[0]), y[0]).backward()
            steps.step()
        plain.append([one[k].weight for k in (0, 3, 5)])
    assert planted.gap(ends[0][0], given[0].weight) > 0.01  # it did train
    assert planted.gap(ends[1], ends[0]) < 1e-10
    assert planted.gap(plain[1], plain[0]) > 1e-3


@pytest.mark.parametrize("method", ["svd", "mpo(order=3)", "tucker", "ring", "cp", "adtn"])
def test_a_rate_means_what_it_means_to_a_dense_weight(method):
    """One step of Adam moves the entries of a rebuilt weight by about the rate, those of a dense one by the rate."""
    torch.manual_seed(0)
    layer = tnc.nn.Linear(96, 64, decomposition=method, rank=4)
    before = layer.weight.detach().clone()
    steps = torch.optim.AdamW(tnc.nn.parameter_groups(layer, 1e-4))
    (layer(torch.randn(32, 96)) * torch.randn(32, 64)).sum().backward()
    steps.step()
    moved = float((layer.weight.detach() - before).square().mean().sqrt())
    assert 0.2e-4 < moved < 2e-4


@pytest.mark.parametrize("method", ["svd", "mpo(order=3)", "tucker"])
def test_decay_is_that_of_the_weight(method):
    """Where no gradient is, each of n cores shrinks by wd / n: the weight as a dense one does; a bias not at all."""
    model = small(net(torch.float64), method, 3)
    before = {k: model[k].weight.detach().clone() for k in (0, 3, 5)}
    biases = [model[k].bias.detach().clone() for k in before]

    def nothing(outputs, labels):
        return 0 * outputs.sum()

    tnc.nn.heal(model, [(torch.randn(4, 32).double(), torch.zeros(4).long())] * 10, loss=nothing, epochs=1, lr=0.05,
                weight_decay=0.2, schedule=lambda done: 1.0, **QUIET)  # fmt: skip
    for k, n in zip((0, 3, 5), (*(len(list(model[k].tnc_weight)) for k in (0, 3)), 1), strict=True):
        left = model[k].weight.detach() / before[k]
        assert torch.allclose(left, torch.full_like(left, (1 - 0.05 * 0.2 / n) ** (10 * n)), rtol=1e-9)
        assert abs(float(left.mean()) - 0.99**10) < 5e-4
    assert all(torch.equal(model[k].bias, bias) for k, bias in zip(before, biases, strict=True))


def test_groups_hold_every_parameter_once():
    tied = nn.ModuleDict({"a": nn.Linear(16, 24), "b": nn.Linear(16, 24), "gru": nn.GRU(8, 8), "c": nn.Conv2d(4, 4, 3)})
    tied["b"].weight = tied["a"].weight
    nn.utils.parametrizations.weight_norm(tied["c"])
    tnc.compress(tied, [tnc.Rule("[ab].weight", "svd", 2), tnc.Rule("gru.weight_hh*", "svd", 2)])
    tied["gru"].bias_hh_l0.requires_grad_(False)
    with torch.no_grad():
        next(tied["gru"].tnc_weight_hh_l0.parameters()).zero_()  # a core of zeros must be able to grow
    groups = tnc.nn.parameter_groups(tied, 0.1, weight_decay=0.01)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in tied.parameters() if p.requires_grad)
    assert all(group["lr"] > 0 for group in groups)


def test_cores_have_a_relative_rate_of_their_own():
    """One step of Adam moves every entry of every core by this share of the core's size, and dense entries by lr."""
    torch.manual_seed(0)
    model = nn.Sequential(tnc.nn.Linear(96, 64, decomposition="adtn(depth=2)", rank=2), nn.Linear(64, 3))
    before = [p.detach().clone() for p in model.parameters()]
    steps = torch.optim.AdamW(tnc.nn.parameter_groups(model, 1e-4, core_lr=0.03, eps=1e-20))
    model(torch.randn(32, 96)).square().sum().backward()
    steps.step()
    cores = {id(core) for core in model[0].tnc_weight}
    for parameter, old in zip(model.parameters(), before, strict=True):
        size = 0.03 * float(old.square().mean().sqrt()) if id(parameter) in cores else 1e-4
        moved = (parameter.detach() - old).abs()[parameter.grad != 0]
        assert torch.allclose(moved, torch.full_like(moved, size), rtol=1e-2)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), "auto"])
def test_impossible_relative_rates_are_refused(rate):
    batches = [(torch.randn(4, 32), torch.zeros(4).long())]
    with pytest.raises(TncError, match=f"^core_lr={rate}: it must be finite and above 0"):
        tnc.nn.heal(small(net(), "svd", 3), batches, epochs=1, core_lr=rate, **QUIET)
