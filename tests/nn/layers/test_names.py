"""Names are the user's: of parameters, of attributes, of whatever a module calls its own."""

from __future__ import annotations

import copy
import pickle

import pytest

import tnc
from tnc.errors import WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

WORDS = ("keys", "values", "items", "update", "pop", "get", "copy", "clear", "weight", "cores", "schedule", "forward_")
OURS = (
    "rows", "plans", "planned", "schedule", "execution", "cores", "release", "adopt", "kept", "keeps", "keeping",
    "base", "through", "reschedule", "kept_row", "held", "network", "shape", "layout", "recipe", "names",
    "kind", "order",
)  # fmt: skip


class Words(nn.Module):
    """Parameters that are called like methods of dictionaries."""

    def __init__(self):
        super().__init__()
        for name in WORDS:
            setattr(self, name, nn.Parameter(torch.randn(20, 24)))

    def forward(self, x):
        return sum(x @ getattr(self, name).T for name in WORDS)


def test_parameters_of_any_name(tmp_path):
    model, x = Words(), torch.randn(3, 24)
    small = tnc.compress(copy.deepcopy(model), "svd", rank=5)
    assert {row.name for row in small.tnc_report.rows} == set(WORDS)
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    tnc.nn.save(small, tmp_path / "words.safetensors")
    assert torch.equal(tnc.nn.load(Words(), tmp_path / "words.safetensors")(x), small(x))
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(twin(x), small(x))
    expected = small(x)
    tnc.nn.uninstall(small)
    assert type(small) is Words and list(small._parameters) == list(WORDS)
    assert torch.allclose(small(x), expected, atol=1e-4)


class Busy:
    """A layer whose attributes are called as ours might be."""

    def __init__(self, *args):
        super().__init__(*args)
        for k, name in enumerate(OURS):
            setattr(self, name, k)

    def attributes(self):
        return [getattr(self, name) for name in OURS]


class BusyLinear(Busy, nn.Linear):
    pass


class BusyTable(Busy, nn.Embedding):
    pass


@pytest.mark.parametrize(("kind", "x"), [(BusyLinear, torch.ones(2, 24)), (BusyTable, torch.tensor([1, 2]))])
def test_attributes_of_any_name(kind, x):
    model = nn.Sequential(kind(24, 18))
    before, held = model[0].attributes(), set(vars(model[0]))
    tnc.compress(model, "svd", rank=3)
    model(x)
    assert model[0].attributes() == before and set(vars(model[0])) == held | {"_tnc"}
    assert tnc.nn.freeze(model)[0].attributes() == before
    tnc.nn.uninstall(model)
    assert model[0].attributes() == before and set(vars(model[0])) == held and type(model[0]) is kind


def test_lists_of_parameters():
    lists = nn.ParameterList([torch.randn(20, 24) for _ in range(3)])
    before = [p.detach().clone() for p in lists]
    tnc.compress(lists, "svd", rank=20)
    assert len(lists) == 3 and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(lists, before, strict=True))


def test_parameters_are_deleted_one_by_one_and_a_computed_one_is_not():
    layer = tnc.compress(nn.Linear(24, 18), "svd", rank=3)
    with pytest.raises(WeightError, match=r"tnc\.nn\.uninstall"):
        del layer._parameters["weight"]
    with pytest.raises(KeyError, match="other"):
        del layer._parameters["other"]
    del layer._parameters["bias"]
    assert "bias" not in layer._parameters and layer.tnc_weight is not None
