"""The order of the fits, which weights are fitted together, and for how many the dense inputs are kept."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tests.nn.calibration.models import STATES, x  # noqa: E402
from tnc.nn.calibration import rounds as module  # noqa: E402
from tnc.nn.calibration.pairs import shifts  # noqa: E402
from tnc.nn.calibration.rounds import Round, parts, rounds, stretches  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402


class Attention(nn.Module):
    """Queries, keys and values of one input, a second layer that adds in place, and one that is never used."""

    def __init__(self):
        super().__init__()
        names = ("k", "q", "v", "out", "after", "idle")
        self.runs = 0
        for name in names:
            setattr(self, name, nn.Linear(4, 4, bias=False, **STATES))

    def forward(self, x):
        self.runs += 1
        x = x.clone()
        scores = self.q(x) @ self.k(x).mT
        x += self.out(scores.softmax(-1) @ self.v(x))
        return self.after(x)


NAMES = [f"{name}.weight" for name in ("idle", "after", "out", "v", "k", "q")]


def test_weights_that_see_the_same_tensor_are_one_round():
    model = Attention()
    found = rounds(model, Calls.of(model, x(6, 3, 4).split(2)), NAMES)

    assert [one.names for one in found[:-1]] == [["q.weight", "k.weight", "v.weight"], ["out.weight"], ["after.weight"]]
    assert found[-1].names == ["idle.weight"], "what the first batch does not use comes last"
    assert [one.numbers for one in found[:-1]] == [3 * 72, 72, 72], "three batches of 24 numbers for each weight"


def test_there_are_not_more_rounds_than_the_limit(monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", 2)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)))
    found = rounds(model, Calls.of(model, torch.randn(2, 3)), [f"{k}.weight" for k in range(5)])

    assert [one.names for one in found] == [["0.weight", "1.weight", "2.weight"], ["3.weight", "4.weight"]]


def test_what_is_kept_stays_within_the_limit(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 10)
    found = [Round([str(n)], n) for n in (4, 5, 3, 25, 1)]

    assert [[one.numbers for one in stretch] for stretch in stretches(found)] == [[4, 5], [3], [25], [1]]
    assert parts(5, 9) == [range(5)] and parts(5, 25) == [range(2), range(2, 4), range(4, 5)]
    assert parts(3, 1000) == [range(k, k + 1) for k in range(3)]


@pytest.mark.parametrize(("kept", "runs"), [(10**6, 2 + 2 * 3), (150, 2 * 2 * 3), (1, 2 * 2 * 3)])
def test_moments_do_not_depend_on_what_is_kept_and_present_values_may_change(monkeypatch, kept, runs):
    model, inputs = Attention(), x(8, 3, 4)
    calls = Calls.of(model, inputs.split(4))
    names = [["q.weight", "k.weight", "v.weight"], ["out.weight"], ["after.weight"]]
    weights = {name: model.get_parameter(name) for each in names for name in each}
    dense = {name: value.detach().clone() for name, value in weights.items()}
    new = {name: 0.9 * value + 0.1 * torch.randn_like(value) for name, value in dense.items()}

    def measured(most):
        monkeypatch.setattr(module, "_KEPT", most)
        present, found = dict(dense), {}
        order = [Round(each, 96 * len(each)) for each in names]
        for each, own in zip(shifts(model, calls, order, dense, present), names, strict=True):
            found |= each
            present |= {name: new[name] for name in own}
        return found

    alone = measured(1)
    model.runs = 0
    found = measured(kept)

    assert model.runs == runs
    assert all(torch.allclose(found[name].cross, alone[name].cross) for name in weights)
    assert all(torch.allclose(found[name].columns, alone[name].columns) for name in weights)
    assert torch.allclose(found["q.weight"].cross, found["q.weight"].columns), "nothing before it has changed"
    assert not torch.allclose(found["after.weight"].cross, found["after.weight"].columns)
