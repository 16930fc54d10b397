"""Linear layers: the same outputs as the dense ones, for inputs of any shape and size."""

from __future__ import annotations

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

pytestmark = pytest.mark.pairwise(
    "methods differ in the network, executions in the plan, options in what torch is asked for"
)


@pytest.mark.parametrize(("lead", "bias"), [((5,), True), ((2, 3), False), ((2, 1, 3), True), ((), False)], ids=str)
def test_linear(planted, method, execution, dtype, lead, bias):
    x = torch.randn(*lead, 24)
    small = planted.agree(nn.Linear(24, 18, bias=bias), method, x, dtype=dtype, execution=execution)
    assert isinstance(small, nn.Linear) and type(small) is tnc.nn.Linear


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)], ids=str)
def test_linear_of_nothing(planted, method, execution, lead):
    small = planted.compressed(planted.plant(nn.Linear(24, 18), method), method, execution=execution)
    assert small(torch.randn(*lead, 24)).shape == (*lead, 18)


@pytest.mark.parametrize("lead", [(300,), (2, 3000)], ids=str)
def test_linear_of_large_batches(planted, method, execution, lead):
    planted.agree(nn.Linear(24, 18), method, torch.randn(*lead, 24), execution=execution)


def test_no_bias_appears(planted, method, execution):
    model = nn.Sequential(nn.Linear(24, 18, bias=False), nn.ReLU(), nn.Linear(18, 24, bias=False))
    small = planted.compressed(planted.plant(model, method), method, execution=execution)
    assert small[0].bias is None and small[2].bias is None
    assert not any("bias" in name for name in small.state_dict())
    assert not small(torch.zeros(3, 24)).any()


def test_the_bias_is_the_layers_own(planted, method):
    model = planted.plant(nn.Linear(24, 18), method)
    bias = model.bias
    assert tnc.compress(model, method, rank=2).bias is bias


@pytest.mark.parametrize("bias", [True, False])
def test_linear_of_prime_sizes(planted, method, execution, bias):
    """No factors to balance: the network overshoots 257 x 509 and is cut."""
    sizes = {"m": tnc.decompositions.parse(method).network((257, 509), 1).shape}
    factors = []
    for length, padded in zip((257, 509), sizes["m"], strict=True):
        network = tnc.decompositions.parse(method).network((257, 509), 1)
        axis = network.axes[len(factors)]
        vector = torch.ones(1, dtype=torch.float64)
        for index in axis:  # a product over the modes, cut at the length, has rank 2 at each of them
            vector = torch.kron(vector, torch.randn(network.sizes[index], dtype=torch.float64))
        assert len(vector) == padded >= length
        factors.append(vector[:length])
    model = nn.Linear(509, 257, bias=bias).double()
    with torch.no_grad():
        model.weight.copy_(torch.outer(*factors))
    x = torch.randn(3, 509, dtype=torch.float64)
    expected = model(x)
    tnc.compress(model, method, rank=4, execution=execution)
    assert model.tnc_report.rows[0].method != "dense" and model.weight.shape == (257, 509)
    assert planted.gap(model(x), expected) < 1e-12
    model(x).sum().backward()
    assert all(p.grad.any() for p in model.parameters())
