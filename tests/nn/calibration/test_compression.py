"""Compression that knows its inputs: nearer outputs, one budget, the dense model left alone until all is fitted."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

import tnc
from tnc.errors import DataError
from tnc.jobs import bytes_of
from tnc.nn.calibration.compression import _preferred
from tnc.nn.calibration.versions import Plan, Version, Work
from tnc.ranks import curves

SPREAD = torch.arange(1.0, 25.0) ** -0.8


class Net(nn.Module):
    """A convolution, batch normalization and linear layers, on inputs that are far from white."""

    def __init__(self):
        super().__init__()
        self.kernel, self.norm = nn.Conv1d(24, 20, 3), nn.BatchNorm1d(20)
        self.up, self.out = nn.Linear(20, 32), nn.Linear(32, 10)

    def forward(self, x):
        hidden = torch.relu(self.norm(self.kernel(x))).mean(-1)
        return self.out(torch.relu(self.up(hidden)))


def inputs(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 24, 6, generator=random) * SPREAD[:, None] + 0.2


@cache
def dense():
    torch.manual_seed(0)
    return Net().eval()


def gap(small):
    x = inputs(100, seed=9)
    with torch.no_grad():
        expected = dense()(x)
        return float((small.eval()(x) - expected).norm() / (expected - expected.mean(0)).norm())


def batches():
    return list(inputs(96).split(32))


@pytest.mark.parametrize("method", ["svd", "tucker", "auto(among=('svd', 'tucker'))"])
def test_outputs_are_nearer_than_without_data(method):
    blind = tnc.compress(copy.deepcopy(dense()), method, rank="budget:0.4")
    seeing = tnc.compress(copy.deepcopy(dense()), method, rank="budget:0.4", data=batches())
    assert gap(seeing) < gap(blind)
    rows = [row for row in seeing.tnc_report.rows if row.method != "dense"]
    assert rows and all(row.output_error is not None for row in rows)
    size = sum(p.numel() for p in dense().parameters() if p.ndim > 1)
    kept = sum(p.numel() for p in seeing.parameters() if p.ndim > 1)
    assert kept <= 0.4 * size + 1
    found = seeing.tnc_report.calibration
    assert found["biases"] > 0  # part of what was judged, and so of what is installed
    steps = found["distances"]
    assert found["distance"] == min(steps[found["objective"]], steps["shift"], steps.get("recalibrated", 9))
    assert found["samples"] + found["held_out"] == 96


@pytest.mark.parametrize("objective", ["output", "fisher"])
def test_one_objective(objective):
    small = tnc.compress(copy.deepcopy(dense()), "svd", rank=3, data=batches(), objective=objective)
    assert small.tnc_report.calibration["objective"] == objective


def test_the_curve_of_a_weight_is_computed_once_for_each_metric(monkeypatch):
    """Two of the three budgets have the same metric, and differ in the importance of the weights only."""
    asked = []
    once = curves.curve

    def counted(subject, decomposition, **options):
        asked.append((subject.x.shape, subject.metric))
        return once(subject, decomposition, **options)

    monkeypatch.setattr("tnc.ranks.budget.curve", counted)
    small = tnc.compress(copy.deepcopy(dense()), "svd", rank="budget:0.4", data=batches())
    assert set(small.tnc_report.calibration["distances"]) >= {"output", "fisher", "fisher, measured"}
    assert len(asked) == 2 * sum(p.ndim > 1 for p in dense().parameters())


def test_versions_that_are_close_are_all_shifted(monkeypatch):
    """One that is a little farther before may be nearer afterwards; one that is far behind is not tried."""
    distances = {"output": 0.5, "fisher": 0.21, "fisher, measured": 0.2}
    after = {"fisher": 0.1, "fisher, measured": 0.15}
    tried = []

    def shifted(work, version):
        tried.append(str(version.plan))
        return version._replace(parts=(after[str(version.plan)],))

    def versions(work):
        found = made(work)
        return [version._replace(parts=(distances[str(version.plan)],)) for version in found]

    made = Work.versions
    monkeypatch.setattr(Work, "versions", versions)
    monkeypatch.setattr(Work, "polished", lambda work, version: version)
    monkeypatch.setattr(Work, "shifted", shifted)
    small = tnc.compress(copy.deepcopy(dense()), "svd", rank="budget:0.4", data=batches())
    found = small.tnc_report.calibration
    assert sorted(tried) == ["fisher", "fisher, measured"]
    assert found["objective"] == "fisher" and found["shift"] and found["distances"]["shift"] == 0.1


@pytest.mark.parametrize(
    ("measured", "wins"),
    [
        ((0.1, 0.1, 0.1, 0.1), True),
        ((0.1, 0.13, 0.1, 0.13), False),
        ((0.05, 0.14, 0.05, 0.12), True),
        ((9, 9, 9, 9), False),
    ],
)
def test_a_version_wins_by_more_than_chance(measured, wins):
    """By a little in every batch, or by a lot. Where it may be chance, the budget by gradients stays."""
    by_gradients = Version(Plan("fisher", False), None, {}, (0.12, 0.12, 0.121, 0.12))
    other = Version(Plan("fisher", True), None, {}, measured)
    assert other.surely_nearer(by_gradients) == wins
    assert _preferred([other, by_gradients]) is (other if wins else by_gradients)


def test_two_batches_cannot_tell_chance():
    near, far = (Version(Plan("fisher", k), None, {}, (0.1, x)) for k, x in enumerate((0.1, 0.11)))
    assert near.surely_nearer(far) and not far.surely_nearer(near) and not near.surely_nearer(near)


def test_statistics_can_be_given():
    found = tnc.nn.calibration.gather(dense(), batches(), gradients=True, missing="ignore")
    small = tnc.compress(copy.deepcopy(dense()), "svd", rank=3, data=batches(), statistics=found)
    assert gap(small) < 1


def test_dead_inputs_do_no_harm():
    dead = [torch.cat([x[:, :12], torch.zeros_like(x[:, 12:])], 1) for x in batches()]
    small = tnc.compress(copy.deepcopy(dense()), "cp", rank=3, data=dead)
    assert all(bool(torch.isfinite(p).all()) for p in small.parameters())


def test_bytes_of_dtypes():
    assert [bytes_of(torch.ones(1, dtype=d)) for d in (torch.float64, torch.bfloat16, torch.int8)] == [8, 2, 1]
    assert bytes_of(torch.ones(1), narrow=True) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "loss", "data": [inputs(8)]}, "objective='loss' is not known"),
        ({"objective": "fisher"}, "needs calibration inputs"),
        ({"forward": lambda model, batch: model(batch)}, "forward= needs calibration inputs"),
        ({"data": []}, "nothing|no batch|empty"),
    ],
)
def test_refusals(options, words):
    model = copy.deepcopy(dense())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=words):
        tnc.compress(model, "svd", rank=3, **options)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


class _Forked(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle, self.head = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.used(x).relu())


def test_weights_that_no_input_reaches():
    """A rule that names them is refused with their names; the rule for all leaves them dense and says so."""
    torch.manual_seed(0)
    data = torch.randn(64, 12)
    with pytest.raises(DataError, match=r"no batch of data= reaches idle\.weight"):
        tnc.compress(_Forked(), tnc.Rule("?*.weight", "svd", 2), data=data)
    model = tnc.compress(_Forked(), "svd", rank=2, data=data)
    assert model.tnc_report.calibration["unreached"] == "idle.weight"
    assert "no input reaches idle.weight: dense" in " ".join(str(model.tnc_report).split())
    assert type(model.idle) is nn.Linear and type(model.used) is not nn.Linear


class _Turned(nn.Module):
    """A linear map whose rows meet the inputs."""

    def __init__(self, linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.clone())

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("objective", ["output", "fisher"])
def test_a_weight_whose_rows_meet_the_inputs_is_fitted_in_order_too(objective):
    """The outputs are those of the same network with transposed weights."""
    torch.manual_seed(0)
    one, two, three = (nn.Linear(n, m, bias=False) for n, m in ((24, 20), (20, 32), (32, 10)))
    straight = nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), three)
    turned = nn.Sequential(one, nn.ReLU(), _Turned(two), nn.ReLU(), _Turned(three))
    data = inputs(128).mean(-1)
    small = [
        tnc.compress(copy.deepcopy(model), tnc.Rule("?*.weight", "svd", 4), data=data, objective=objective)
        for model in (straight, turned)
    ]
    first, second = (model.tnc_report.calibration for model in small)
    assert second["distances"] == pytest.approx(first["distances"], rel=0.02) and first["shift"] and second["shift"]
    assert torch.allclose(small[0](data), small[1](data), atol=0.02)


def test_a_budget_is_also_divided_by_measured_distances():
    small = tnc.compress(copy.deepcopy(dense()), "svd", rank=tnc.Budget(0.5), data=batches())
    assert set(small.tnc_report.calibration["distances"]) >= {"output", "fisher", "fisher, measured"}
    fixed = tnc.compress(copy.deepcopy(dense()), "svd", rank=3, data=batches())
    assert "fisher, measured" not in fixed.tnc_report.calibration["distances"]


def test_versions_that_are_far_behind_are_not_continued(monkeypatch):
    distances = {"output": 3.0, "fisher": 1.0, "fisher, measured": 1.2}
    swept = []

    def judged(work, plan, checkpoint, means):
        return Version(plan, checkpoint, {}, (distances[str(plan)],))

    def polished(work, version):
        swept.append(str(version.plan))
        return version._replace(parts=(version.distance / 2,))

    monkeypatch.setattr(Work, "_judged", judged)
    monkeypatch.setattr(Work, "polished", polished)
    monkeypatch.setattr(Work, "shifted", lambda work, version: version._replace(parts=(9.0,)))
    found = tnc.compress(copy.deepcopy(dense()), "tucker", rank=tnc.Budget(0.5), data=batches()).tnc_report.calibration
    assert swept == ["fisher", "fisher, measured"] and found["objective"] == "fisher"
    assert found["distances"].items() >= {"output": 3.0, "fisher": 0.5, "fisher, measured": 0.6}.items()
