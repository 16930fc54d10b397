"""Whole models go through pickle, as torch.save writes them, and through copy: layers of torch, and those of others."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here


class Branded(nn.Linear):
    """Someone's own layer."""

    def __init__(self, *args):
        super().__init__(*args)
        self.brand = "mine"


class Doubled(nn.Conv2d):
    """Another, with a method of its own."""

    def doubled(self, x):
        return 2 * self(x)


def saved(model):
    """The model out of a file of `torch.save`."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model):
    """The model out of a pickle of the oldest protocol that torch's own layers can take."""
    return pickle.loads(pickle.dumps(model, 2))


WAYS = {"torch.save": saved, "pickle": pickled, "deepcopy": copy.deepcopy}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.mark.pairwise("the way there and back does not see the method")
@each_way
@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: nn.Linear(24, 18), (5, 24)),
        (lambda: Branded(24, 18), (5, 24)),
        (lambda: Doubled(8, 12, 3), (2, 8, 9, 9)),
    ],
    ids=["torch", "Branded", "Doubled"],
)
def test_a_model_comes_back(planted, method, way, made, shape):
    dense = planted.plant(nn.Sequential(made(), nn.ReLU()))
    model, x = planted.compressed(dense, method), torch.randn(shape)
    found = way(model)
    assert type(found[0]) is type(model[0]) and found[0] is not model[0]
    assert vars(found[0]).keys() == vars(model[0]).keys()
    assert getattr(found[0], "brand", None) == getattr(model[0], "brand", None)
    assert torch.equal(found(x), model(x))
    with torch.no_grad():
        next(found.parameters()).zero_()
    assert not torch.equal(found(x), model(x))  # of its own
    found(x).sum().backward()
    assert all(p.grad is not None for p in found.parameters()) and all(p.grad is None for p in model.parameters())
    assert type(tnc.nn.uninstall(found)[0]) is type(dense[0])


@each_way
def test_attention_comes_back(planted, way):
    """Its output projection is a class that torch keeps for itself."""
    layer = planted.plant(nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)).eval()
    model = tnc.compress(layer, [tnc.Rule("*out_proj.weight", "svd", 2), tnc.Rule("linear*.weight", "svd", 2)])
    x = torch.randn(2, 5, 24)
    assert torch.equal(way(model)(x), model(x))
