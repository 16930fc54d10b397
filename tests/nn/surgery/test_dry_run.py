"""A dry run only predicts, with and without calibration inputs, and leaves the model alone."""

from __future__ import annotations

import copy

import pytest

import tnc
from tnc.errors import DataError, MatchError, RankError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import net  # noqa: E402
from tnc.nn.calibration import gather  # noqa: E402

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


def same(model, state, training):
    return model.training == training and all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("rank", [3, 0.5, "tolerance:0.6", "budget:0.5"])
@pytest.mark.parametrize("data", [None, X], ids=["no data", "data"])
def test_it_predicts_and_changes_nothing(rank, data):
    model = net().train()
    state = copy.deepcopy(model.state_dict())
    report = tnc.compress(model, "svd", rank=rank, data=data, dry_run=True)
    assert isinstance(report, tnc.Report) and same(model, state, True) and not hasattr(model, "tnc_report")
    assert type(model[0]) is nn.Linear
    for row in report.rows:
        assert row.method == "dense" or (row.error is None and row.predicted > 0)
        assert (row.operations_before is None) == (data is None)
    assert (report.calibration.get("objective") == "fisher") == (data is not None)
    assert report.total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("objective", ["output", "fisher"])
def test_the_ranks_are_those_of_the_real_run(objective):
    model = net()
    options = {"rank": 0.5, "data": X, "objective": objective}
    foreseen = tnc.compress(model, "svd", dry_run=True, **options)
    done = tnc.compress(model, "svd", **options).tnc_report
    for row, real in zip(foreseen.rows, done.rows, strict=True):
        assert (row.method, row.ranks, row.after) == (real.method, real.ranks, real.after)
        assert (row.operations_before, row.operations_after) == (real.operations_before, real.operations_after)


def test_statistics_are_enough():
    model = net()
    for gradients, objective in ((True, "fisher"), (False, "output")):
        found = gather(model, X, gradients=gradients)
        report = tnc.compress(model, "svd", rank=0.5, statistics=found, dry_run=True)
        assert report.calibration == {"samples": 64, "objective": objective}
    with pytest.raises(DataError, match="another model"):
        tnc.compress(nn.Sequential(nn.Linear(4, 4)), "svd", rank=0.5, statistics=found, dry_run=True)


def test_what_is_factorized_already_stays_in_the_report():
    model = tnc.compress(net(), [tnc.Rule("0.weight", "svd", 3)])
    report = tnc.compress(model, [tnc.Rule("3.weight", "tt", 2)], dry_run=True)
    assert [row.name for row in report.rows] == ["0.weight", "3.weight"] and report.rows[0].error is not None
    assert model.tnc_report.rows[0] == report.rows[0]


def test_refusals_are_those_of_compress():
    for options, error, words in (
        ({"rank": "budget:0.0001"}, RankError, "smallest budget possible"),
        ({"rank": 3, "rules": [tnc.Rule("none", "svd", 3)]}, MatchError, "matches no weight"),
        ({"rank": 3, "objective": "best"}, DataError, "objective='best'"),
        ({"rank": 3, "objective": "fisher"}, DataError, "needs calibration inputs"),
        ({"rank": 3, "forward": print}, DataError, "needs calibration inputs"),
        ({"rank": 3, "data": []}, DataError, "no batch"),
    ):
        rules = options.pop("rules", "svd")
        with pytest.raises(error, match=words):
            tnc.compress(net(), rules, dry_run=True, **options)


def test_biases_that_correct_means_are_in_the_model():
    """The distance of the finished model is the one that was judged."""
    model = net()
    dense, biases = copy.deepcopy(model), {n: p.detach().clone() for n, p in model.named_parameters() if "bias" in n}
    facts = tnc.compress(model, "svd", rank=0.3, data=X).tnc_report.calibration
    assert facts["biases"] > 0
    now = dict(model.named_parameters())
    assert any(not torch.equal(now[name], old) for name, old in biases.items())
    held_out = X[-16:]
    with torch.no_grad():
        y, z = dense.eval()(held_out), model.eval()(held_out)
    assert float((y - z).square().sum() / (y - y.mean(0)).square().sum()) == pytest.approx(facts["distance"], rel=1e-3)


def test_the_calibration_is_in_the_file(tmp_path):
    model = tnc.compress(net(), "svd", rank=0.3, data=X)
    tnc.nn.save(model, tmp_path / "small.safetensors")
    again = tnc.nn.load(net(), tmp_path / "small.safetensors")
    assert again.tnc_report.calibration == model.tnc_report.calibration
    assert "held-out inputs" in str(again.tnc_report) and again.tnc_report.operations == model.tnc_report.operations
