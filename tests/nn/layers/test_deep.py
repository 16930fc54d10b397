"""Layers whose cores are many: through them in half precision, gradients are as good as their dtype."""

from __future__ import annotations

import copy

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

DEEP = ["adtn(depth=1)", "mpo(order=7)", "tt(order=4)"]
KINDS = {
    "linear": (lambda: nn.Linear(128, 128), lambda: torch.randn(4, 128)),
    "convolution": (lambda: nn.Conv2d(64, 64, 2), lambda: torch.randn(2, 64, 5, 5)),
    "embedding": (lambda: nn.Embedding(128, 128), lambda: torch.arange(0, 128, 5)),
}


def gradients(layer, x, upstream):
    layer.zero_grad()
    (layer(x).double() * upstream).sum().backward()
    return [core.grad.double() for core in layer.tnc_weight]


@pytest.mark.pairwise("precision is chosen by the number of cores alone")
@pytest.mark.parametrize("cast", [False, True], ids=["dtype", "autocast"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", DEEP)
def test_gradients_through_many_cores(spec, kind, cast):
    torch.manual_seed(0)
    made, x = KINDS[kind][0](), KINDS[kind][1]()
    if kind == "convolution" and spec.startswith("mpo"):
        spec = "mpo(order=6)"
    layer = tnc.nn.tensorize(nn.Sequential(made), spec, 2, execution="factorized")[0]
    assert len(list(layer.tnc_weight)) > 6
    if not cast:
        layer = layer.bfloat16()
    x = x.bfloat16() if x.is_floating_point() else x
    wide = copy.deepcopy(layer).double()
    upstream = torch.randn(wide(x.double() if x.is_floating_point() else x).shape, dtype=torch.float64)
    upstream = upstream.bfloat16().double()
    expected = gradients(wide, x.double() if x.is_floating_point() else x, upstream)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        found = gradients(layer, x.float() if cast and x.is_floating_point() else x, upstream)
    for short, exact in zip(found, expected, strict=True):
        assert float((short - exact).norm() / exact.norm()) <= 2**-7
