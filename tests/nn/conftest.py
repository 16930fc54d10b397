"""Models whose weights are exactly of low rank, so that factorized and dense outputs must agree to rounding."""

from __future__ import annotations

import copy
from itertools import count
from types import SimpleNamespace

import pytest

import tnc

torch = pytest.importorskip("torch")

from array_api_compat import torch as xp  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import QUIET, loader, net  # noqa: E402
from tnc.contract import dense  # noqa: E402
from tnc.fit import random_cores  # noqa: E402
from tnc.nn.layers.roles import roles_of  # noqa: E402
from tnc.nn.runtime.schedule import EXECUTIONS  # noqa: E402

METHODS = ("svd", "mpo(order=2)", "tucker")
TIGHT = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative error allowed between a factorized and a dense computation."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=EXECUTIONS)
def execution(request):
    return request.param


@pytest.fixture(params=TIGHT, ids=str)
def dtype(request):
    return request.param


def plant(model, method="svd", rank=2):
    """Give every weight of two or more axes the format of `method` at `rank`, as large as it was; the same model."""
    rule, number = tnc.Rule("*", method, rank), count()
    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                k, shape = next(number), tuple(weight.shape)
                if weight.ndim >= 2:
                    network = rule.decomposed(shape, roles_of(module, name, shape)).network(shape, rank).clipped()
                    assert network.shape == shape, "cutting padding off would spoil the format"
                    wide = dense(network, random_cores(torch.empty(0, dtype=torch.float64), network, k), xp=xp)
                    weight.copy_(wide * (weight.double().std() / wide.std()))
    return model


@torch.no_grad()
def gap(found, expected):
    """Relative error over everything a module returns: tensors, tuples, dictionaries."""
    if isinstance(expected, dict):
        found, expected = [found[key] for key in expected], list(expected.values())
    if isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        return max((gap(a, b) for a, b in zip(found, expected, strict=True) if b is not None), default=0.0)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert torch.isfinite(found).all()
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if expected.numel() and expected.any() else float(difference)


def total(output):
    """One number that depends on all of a module's output."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return sum(total(part) for part in output if part is not None)
    return (output.double() * torch.linspace(0.5, 1.5, output.numel()).view(output.shape)).sum()


def compressed(model, method="svd", rank=2, **options):
    """A compressed copy whose weights of two or more axes are all factorized, without loss."""
    model = tnc.compress(copy.deepcopy(model), method, rank=rank, **options)
    rows = model.tnc_report.rows
    weights = [name for name, p in model.named_parameters() if p.ndim >= 2 and ".tnc_" not in f".{name}"]
    assert rows and not weights and {row.method for row in rows} <= {str(tnc.decompositions.parse(method)), "tied"}
    return model


def ran(model, inputs, keywords):
    """The output of a model for copies of these inputs, and the gradients of the copies."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) if torch.is_tensor(x) else x for x in inputs]
    output = model(*leaves, **keywords)
    total(output).backward()
    return output, [x.grad for x in leaves if torch.is_tensor(x) and x.grad is not None]


def agree(model, method, *inputs, dtype=torch.float64, execution="auto", rank=2, **keywords):
    """Outputs, gradients of inputs and what `uninstall` gives back agree with the dense model; the compressed one."""
    model = plant(model.to(dtype), method, rank)
    small = compressed(model, method, rank, execution=execution)
    inputs = [x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    expected, found = (ran(one, inputs, keywords) for one in (model, small))
    assert gap(found[0], expected[0]) < TIGHT[dtype]
    assert gap(found[1], expected[1]) < TIGHT[dtype]
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"no gradient reaches {name}"
    back = tnc.nn.uninstall(copy.deepcopy(small))
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert list(back.state_dict()) == list(model.state_dict())
    assert gap(dict(back.state_dict()), dict(model.state_dict())) < TIGHT[dtype]
    return small


def snapshot(model):
    """All there is to a model: classes, attributes, the parameters themselves and their values."""
    held = {}
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = [(key, dict(value) if isinstance(value, dict) else value) for key, value in vars(module).items()]
        # Torch renews the weak references of recurrent layers in every forward.
        held[name] = type(module), [(key, value) for key, value in attributes if key != "_flat_weight_refs"]
    values = {name: (id(p), p.dtype, p.tolist()) for name, p in model.named_parameters()}
    return held, values


@pytest.fixture
def planted():
    """The functions above."""
    return SimpleNamespace(plant=plant, gap=gap, total=total, compressed=compressed, agree=agree, snapshot=snapshot)


@pytest.fixture(scope="module")
def trained():
    """A network that tells the clouds apart."""
    torch.manual_seed(0)
    model = net()
    tnc.nn.heal(model, loader(2000), epochs=3, lr=3e-3, **QUIET)
    return model
