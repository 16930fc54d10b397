"""Curves of every layer: from the machinery of budgets, without replacing anything."""

from __future__ import annotations

import copy
import json
import math

import pytest

import tnc
from tnc.errors import DataError, MatchError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import net  # noqa: E402
from tnc.nn import Sensitivity, sensitivity  # noqa: E402
from tnc.nn.calibration import gather  # noqa: E402

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


def test_curves_fall_and_the_model_stays():
    model = net().train()
    state = copy.deepcopy(model.state_dict())
    found = tnc.sensitivity(model, X, decomposition="auto(among=('svd', 'cp'))")
    assert model.training and all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert found.objective == "fisher"
    assert {method for _, method in found.curves} == {"svd", "cp"}
    assert {name for name, _ in found.curves} == {n for n, p in model.named_parameters() if p.ndim == 2}
    for (name, _), steps in found.curves.items():
        assert [s.parameters for s in steps] == sorted(s.parameters for s in steps)
        assert [s.predicted for s in steps] == sorted((s.predicted for s in steps), reverse=True)
        size = model.get_parameter(name).numel()
        assert all(s.share == s.parameters / size < 1 for s in steps)


def test_what_is_predicted():
    model = net()
    plain = sensitivity(model, decomposition="svd")
    assert plain.objective == "weight"
    values = torch.linalg.svdvals(model[0].weight.detach().double())
    for step in plain.curves[("0.weight", "svd")]:
        (rank,) = step.ranks
        assert step.predicted == pytest.approx(float((values[rank:] ** 2).sum() / (values**2).sum()), rel=1e-4)
    assert sensitivity(model, X, decomposition="svd", objective="output").objective == "output"
    without = gather(model, X)
    assert sensitivity(model, statistics=without, decomposition="svd").objective == "output"
    rule = tnc.Rule("3.weight", "tt", 1)
    assert list(sensitivity(model, X, decomposition=[rule]).curves) == [("3.weight", "tt")]


def test_tables_and_json(tmp_path):
    found = sensitivity(net(), X, decomposition="svd")
    text = str(found)
    assert "0.weight" in text and "50%" in text and "predicted rise of the loss" in text
    assert repr(found) == f"<Sensitivity: {len(found.curves)} curves of {len(found.curves)} weights>"
    data = json.loads(found.to_json())
    assert data == json.loads(json.dumps(found.to_dict())) and data["objective"] == "fisher"
    assert data["rows"][0].keys() == {"name", "method", "ranks", "parameters", "share", "predicted"}
    assert "weight" in str(Sensitivity([], "weight"))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_picture(count, tmp_path):
    pytest.importorskip("matplotlib")
    steps = sensitivity(net(), decomposition="svd").rows
    names = list(dict.fromkeys(step.name for step in steps))[:count]
    Sensitivity([step for step in steps if step.name in names], "weight").picture(tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_progress_is_shown():
    seen = []

    def progress(iterable, *, total=None, description=""):
        seen.append((description, total))
        return iterable

    sensitivity(net(), decomposition="svd", progress=progress)
    assert ("curves", sum(p.ndim == 2 for p in net().parameters())) in seen


def test_refusals_are_those_of_compress():
    for options, error, words in (
        ({"data": []}, DataError, "no batch"),
        ({"objective": "best"}, DataError, "objective='best'"),
        ({"objective": "fisher"}, DataError, "objective= needs calibration inputs"),
        ({"forward": print}, DataError, "forward= needs calibration inputs"),
        ({"decomposition": [tnc.Rule("none", "svd", 1)]}, MatchError, "matches no weight"),
        ({"statistics": gather(nn.Linear(3, 3), torch.randn(4, 3))}, DataError, "another model"),
    ):
        with pytest.raises(error, match=words):
            sensitivity(net(), **options)
    with pytest.raises(MatchError, match="Factorized already"):
        sensitivity(tnc.compress(net(), "svd", rank=2))


def test_numbers_that_are_none():
    step = tnc.nn.surgery.sensitivity.Step("w", "svd", (1,), 3, 0.5, None)
    assert "w" in str(Sensitivity([step], "weight")) and not math.isnan(step.share)
