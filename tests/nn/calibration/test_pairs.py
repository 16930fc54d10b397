"""Moments of two versions of a model on the same inputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from tests.nn.calibration.models import STATES, Raw, routed, x  # noqa: E402
from tnc.errors import DataError, MatchError  # noqa: E402
from tnc.nn.calibration import tallies as tallies_module  # noqa: E402
from tnc.nn.calibration.pairs import shifts  # noqa: E402
from tnc.nn.calibration.rounds import Round  # noqa: E402
from tnc.nn.data.calls import Calls  # noqa: E402


def shifted(model, calls, names, dense, present):
    """All weights in one round."""
    (found,) = shifts(model, calls, [Round(names, 0)], dense, present)
    return found


class Counted(nn.Tanh):
    count = 0

    def forward(self, x):
        Counted.count += 1
        return super().forward(x)


def net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **STATES), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2, **STATES), Counted(), nn.Flatten(),
        nn.Linear(16, 5, **STATES),
    )  # fmt: skip


def versions(model, names):
    dense = {name: model.get_parameter(name).detach().clone() for name in names}
    return dense, {name: value * 0.9 + 0.05 * torch.randn_like(value) for name, value in dense.items()}


def inputs_of(model, layer, inputs, values):
    """What a layer of the model sees with these values."""
    seen = []
    hook = model[layer].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        torch.func.functional_call(model, values, (inputs,))
    hook.remove()
    return seen[0]


def test_moments_of_both_runs():
    model, inputs = net(), x(6, 2, 6, 6)
    dense, present = versions(model, ["0.weight", "2.weight"])
    with torch.no_grad():
        model[0].weight.mul_(0.3)  # what the model holds does not matter
    held = {name: value.clone() for name, value in model.state_dict().items()}
    Counted.count = 0
    shifts = shifted(model, Calls.of(model, inputs.split(4)), ["0.weight", "2.weight"], dense, present)
    assert Counted.count == 1, "all runs but the first end at the last weight"
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items()) and model.training
    a, b = (inputs_of(model, 2, inputs, values) for values in (dense, present))
    a, b = (F.unfold(v, 3).transpose(1, 2).reshape(-1, 2, 18).transpose(0, 1) for v in (a, b))
    shift = shifts["2.weight"]
    assert torch.allclose(shift.columns, b.mT @ b / b.shape[1]) and torch.allclose(shift.cross, a.mT @ b / b.shape[1])
    assert torch.allclose(shift.mean, a.mean(1)) and torch.allclose(shift.mean_shifted, b.mean(1))
    assert shift.uses == 4 and shift.kernel is None
    first = shifts["0.weight"]
    assert torch.allclose(first.columns, first.cross) and torch.allclose(first.mean, first.mean_shifted)


def test_sampled_patches_are_the_same_in_both_runs():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False, **STATES), nn.Conv2d(2, 3, 3, **STATES))
    value = torch.eye(2, **STATES).view(2, 2, 1, 1)
    calls = Calls.of(model, x(4, 2, 60, 60).split(2))
    shift = shifted(model, calls, ["1.weight"], {"0.weight": value}, {"0.weight": 2 * value})["1.weight"]
    assert torch.allclose(shift.columns, 2 * shift.cross) and torch.allclose(shift.mean_shifted, 2 * shift.mean)


def test_large_kernels_have_no_cross_moment(monkeypatch):
    monkeypatch.setattr(tallies_module, "LARGEST", 9)
    model, inputs = net(), x(6, 2, 6, 6)
    shift = shifted(model, Calls.of(model, inputs), ["2.weight"], *versions(model, ["0.weight"]))["2.weight"]
    assert shift.cross is None and shift.columns.shape == (2, 2, 2) and shift.kernel.shape == (2, 9, 9)


def test_other_routes_and_no_use_give_none():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.idle = nn.Linear(5, 5, **STATES), nn.Linear(5, 5, **STATES)
            self.experts = Raw((3, 4, 5), routed, roles="stack rows columns")

        def forward(self, x):
            return self.experts(self.first(x))

    model, calls = Mixture(), None
    calls = Calls.of(model, x(12, 5))
    names = ["experts.w", "idle.weight", "first.weight"]
    dense, present = versions(model, ["first.weight"])
    alike = shifted(model, calls, names, dense, dense)
    assert alike["idle.weight"] is None and torch.allclose(alike["experts.w"].cross, alike["experts.w"].columns)
    other = shifted(model, calls, names, dense, {"first.weight": -present["first.weight"]})
    assert other["experts.w"] is None and other["idle.weight"] is None and other["first.weight"] is not None


def test_tables_give_none():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    dense, present = versions(model, ["0.weight"])
    shifts = shifted(model, Calls.of(model, torch.arange(5)), ["0.weight", "1.weight"], dense, present)
    assert shifts["0.weight"] is None and shifts["1.weight"].cross.shape == (3, 3)


def test_a_layer_that_is_used_twice():
    layer = nn.Linear(4, 4, **STATES)
    model, inputs = nn.Sequential(layer, nn.Tanh(), layer), x(6, 4)
    dense, present = versions(model, ["0.weight"])
    shift = shifted(model, Calls.of(model, inputs), ["0.weight"], dense, present)["0.weight"]
    a, b = (torch.cat([inputs, inputs_of(model, 1, inputs, v).tanh()]) for v in (dense, present))
    assert torch.allclose(shift.cross, a.T @ b / 12) and shift.uses == 2


def test_bad_input():
    model = net()
    calls = Calls.of(model, x(2, 2, 6, 6))
    dense, present = versions(model, ["0.weight"])
    with pytest.raises(MatchError, match="'nothing' is no dense weight"):
        shifted(model, calls, ["nothing"], dense, present)
    with pytest.raises(DataError, match=r"input of 2\.weight is NaN or infinite for batch 0"):
        shifted(model, calls, ["2.weight"], dense, {"0.weight": present["0.weight"] * torch.nan})
