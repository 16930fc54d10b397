"""Calibrated fits of convolutions whose groups are no axis of the weight, and of weights that are only looked up."""

from __future__ import annotations

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.calibration import gather  # noqa: E402
from tnc.nn.calibration.metrics import site_of, weighing  # noqa: E402
from tnc.nn.layers.roles import roles_of  # noqa: E402

X = torch.randn(24, 8, 6, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 8).reshape(8, 1, 1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(96, 5))


@pytest.mark.parametrize("objective", ["output", "fisher"])
@pytest.mark.parametrize("method", ["svd", "tt", "cp", "tucker"])
def test_a_depthwise_convolution_is_calibrated(method, objective):
    model = network()
    rules = [tnc.Rule("0.weight", method, 2), tnc.Rule("*", "svd", 0.7)]
    report = tnc.compress(model, rules, data=X, objective=objective).tnc_report
    first = report.rows[0]
    assert first.method == method and first.output_error <= first.error * 1.001
    assert report.calibration["distance"] < 1


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("out", [8, 16])
def test_the_norm_is_that_of_the_outputs(out, gradients):
    layer = nn.Conv2d(8, out, 3, groups=8, bias=False, dtype=torch.float64)
    found = gather(layer, X.double(), gradients=gradients)["weight"]
    roles = roles_of(layer, "weight", tuple(layer.weight.shape))
    site = site_of(layer, "weight", layer.weight.detach(), roles, found)
    metric = weighing(site, found, gradients=gradients).metric
    error = torch.randn_like(layer.weight)
    seen = site.roles.permuted(error)
    metric.check(tuple(seen.shape))
    if not gradients:
        outputs = nn.functional.conv2d(X.double(), error, groups=8)
        expected = float(outputs.square().sum()) / (len(X) * found.uses)
        assert metric.like(seen).energy(seen) == pytest.approx(expected, rel=1e-9)


def test_a_lookup_multiplies_nothing():
    model = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 12))
    report = tnc.compress(model, tnc.Rule("?*", "svd", 3), data=torch.randint(40, (32, 4)), dry_run=True)
    assert [row.operations_before for row in report.rows] == [0, 4 * 16 * 12]
