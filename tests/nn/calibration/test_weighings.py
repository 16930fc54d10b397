"""How errors of weights count without their model: as with it, but for the biases; and what does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tnc.errors import DataError
from tnc.roles import AxisRoles

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.calibration import gather, weighings_of  # noqa: E402
from tnc.nn.calibration.weighings import evened, observed  # noqa: E402


def arrays(model, dtype=None):
    return {name: x.detach().numpy().astype(dtype or x.numpy().dtype) for name, x in model.state_dict().items()}


def skewed(*shape):
    return torch.randn(*shape) * torch.logspace(-1, 1, shape[1]).reshape(-1, *[1] * (len(shape) - 2))


def network():
    return nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


@pytest.mark.parametrize("objective", ["output", "fisher"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_outputs_are_nearer_than_without(objective, dtype):
    model, x = network(), skewed(32, 6, 4, 4)
    weights = arrays(model, dtype)
    found = weighings_of(gather(model, x, gradients=True), weights, {}, objective)
    assert set(found) == {"0.weight", "3.weight"}
    plain, seen = (tnc.compress_weights(weights, "svd", rank=4, weighings=w) for w in ({}, found))
    for name, weighing in found.items():
        metric = weighing.like(weights[name]).metric
        rows = [weights[name].astype(float) - np.asarray(c[name].dense(), float) for c in (plain, seen)]
        assert metric.energy(rows[1]) < metric.energy(rows[0])
    assert all(row.output_error is not None and row.operations_after for row in seen.report.rows)


def test_a_read_only_array_is_no_problem():
    model, x = network(), skewed(8, 6, 4, 4)
    weights = arrays(model)
    for x_ in weights.values():
        x_.setflags(write=False)
    assert weighings_of(gather(model, x), weights, {})


def test_what_does_not_fit_is_named():
    model, x = network(), skewed(8, 6, 4, 4)
    found, weights = gather(model, x), arrays(model)
    for change, words in (
        ({"objective": "best"}, "objective='best'"),
        ({"objective": "fisher"}, "gradients=True"),
        ({"roles": {"0.weight": AxisRoles("columns rows kernel kernel")}}, "statistics of 0.weight do not fit axes of"),
        ({"weights": {n: w for n, w in weights.items() if n != "3.weight"}}, "has no 3.weight"),
        ({"weights": weights | {"3.weight": np.zeros((3, 3))}}, r"3.weight \(10, 128\)"),
    ):
        options = {"weights": weights, "roles": {}} | change
        with pytest.raises(DataError, match=words):
            weighings_of(found, **options)


def test_roles_are_stated():
    model = nn.Sequential(nn.ConvTranspose2d(6, 8, 3))
    found, weights = gather(model, skewed(8, 6, 4, 4)), arrays(model)
    with pytest.raises(DataError, match="state those of its module"):
        weighings_of(found, weights, {})
    assert weighings_of(found, weights, {"0.weight": AxisRoles("columns rows kernel kernel")})


class Beside(nn.Module):
    """One of its layers is run, and its outputs are not used."""

    def __init__(self):
        super().__init__()
        self.used, self.beside = nn.Linear(12, 16), nn.Linear(12, 16)

    def forward(self, x):
        self.beside(x)
        return self.used(x)


def test_a_weight_without_gradients_counts_as_much_as_the_others():
    torch.manual_seed(0)
    model, x = Beside(), torch.randn(64, 12)
    found = gather(model, x, gradients=True)
    assert found["beside.weight"].rows is None
    groups = [(tnc.Rule("*", "svd", 2), ["used.weight", "beside.weight"])]
    weights, roles = dict(model.named_parameters()), dict.fromkeys(groups[0][1], AxisRoles("rows columns"))
    known = observed(model, None, weights, groups, roles, statistics=found, gradients=True)
    weighings = known.weighings("fisher")
    assert weighings["beside.weight"].importance == weighings["used.weight"].importance
    assert len(weighings["beside.weight"].metric.factors) == 1 and len(weighings["used.weight"].metric.factors) == 2
    more = evened(weighings, ["used.weight", "beside.weight", "other"])
    assert more["other"].importance == weighings["used.weight"].importance and not more["other"].metric.factors


def test_an_objective_of_which_nothing_is_known_is_refused():
    model, x = Beside(), torch.randn(64, 12)
    found = gather(model, x)
    with pytest.raises(DataError, match=r"objective='fisher' needs moments of gradients: .*gradients=True"):
        tnc.compress(model, "svd", rank=2, data=x, statistics=found, objective="fisher")
    tnc.compress(model, "svd", rank=2, data=x, statistics=found)
    assert model.tnc_report.calibration["objective"] == "output"


def test_roles_of_a_rule_leave_a_weight_to_its_entries():
    """Statistics are in the roles of the module; where a rule states others, the weight is fitted as it is."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 12)), torch.randn(64, 12)
    rules = [tnc.Rule("0.weight", "svd", 2, roles="columns rows"), tnc.Rule("1.weight", "svd", 2)]
    tnc.compress(model, rules, data=x)
    first, second = model.tnc_report.rows
    assert first.output_error == pytest.approx(first.error, rel=1e-5) and second.output_error != second.error
