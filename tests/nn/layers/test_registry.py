"""Fast layers by entry points: ours like a stranger's."""

import pytest

import tnc
from tnc.errors import PluginError
from tnc.registry import Plugin

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.layers import factorized_class, layers, registry  # noqa: E402
from tnc.nn.layers.base import Factorized  # noqa: E402


class Scaled(nn.Linear):
    """A layer of a stranger, with a forward of its own."""

    def forward(self, input):
        return 2 * super().forward(input)


class FastScaled(Factorized, Scaled):
    """Its fast form: the kept or rebuilt weight."""

    _tnc_base = Scaled

    def forward(self, input):
        return 2 * nn.functional.linear(input, self._tnc_weight(self._tnc_cores.held()), self.bias)


class Broken(nn.Module):
    """No subclass of `Factorized`."""


def install(monkeypatch, name):
    ours = layers.plugins()
    theirs = Plugin("scaled", f"{__name__}:{name}", "someone", "1.0")
    monkeypatch.setattr(layers, "plugins", lambda: [*ours, theirs])
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(**globals()))


def test_ours_are_registered():
    assert len(layers) == 9
    assert factorized_class(nn.Linear(3, 4)) is tnc.nn.Linear is layers["linear"]
    assert factorized_class(nn.Conv2d(3, 4, 3)) is tnc.nn.Conv2d
    assert factorized_class(Scaled(3, 4)) is None  # its forward is not that of a Linear


def test_a_strangers_layer_runs_its_module(monkeypatch):
    install(monkeypatch, "FastScaled")
    dense = nn.Sequential(Scaled(24, 18))
    small = tnc.compress(nn.Sequential(Scaled(24, 18)), "svd", rank=4)
    assert isinstance(small[0], FastScaled) and factorized_class(dense[0]) is FastScaled
    with torch.no_grad():
        dense[0].weight.copy_(small[0].weight)
        dense[0].bias.copy_(small[0].bias)
    x = torch.randn(5, 24)
    assert torch.allclose(small(x), dense(x), atol=1e-6)
    assert type(tnc.nn.uninstall(small)[0]) is Scaled


def test_what_is_no_layer_is_refused(monkeypatch):
    install(monkeypatch, "Broken")
    registry._loaded.cache_clear()
    with pytest.raises(PluginError, match=r"not a subclass of tnc\.nn\.layers\.base\.Factorized"):
        factorized_class(Scaled(3, 4))
