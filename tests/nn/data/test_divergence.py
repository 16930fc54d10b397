"""The divergence of predictions, against its definition."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from tnc.nn.data.divergence import Spread, divergence  # noqa: E402 - after the check that torch is here


def logits(rows=7, classes=5, seed=0):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_that_of_kullback_and_leibler():
    x, y = logits(), logits(seed=1)
    p, q = y.softmax(-1), x.softmax(-1)
    assert torch.allclose(divergence(x, y), (p * (p / q).log()).sum(-1))
    assert torch.equal(divergence(y, y), torch.zeros(7, dtype=torch.float64))
    assert torch.allclose(
        divergence(x + 100, y - torch.arange(7)[:, None]), divergence(x, y)
    )  # a softmax sees no shift


@pytest.mark.parametrize("hidden", [-math.inf, -1e38, math.nan])
def test_classes_that_the_reference_leaves_out_do_not_count(hidden):
    x, y = logits(), logits(seed=1)
    expected = divergence(x[:, 1:], y[:, 1:])
    y[:, 0] = hidden
    x.requires_grad_()
    found = divergence(x, y)
    assert torch.allclose(found, expected)
    found.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_a_row_without_any_class_is_left_out():
    x, y = logits().requires_grad_(), logits(seed=1)
    y[2] = math.nan
    found = divergence(x, y)
    found.sum().backward()
    assert float(found.detach()[2]) == 0 and bool(x.grad.isfinite().all()) and bool(found.isfinite().all())


def test_a_student_that_gives_nan_is_not_near():
    x, y = logits(), logits(seed=1)
    x[0, 2] = math.nan
    assert bool(divergence(x, y)[0].isnan()) and bool(divergence(x, y)[1:].isfinite().all())


def test_the_spread_is_the_divergence_from_the_mean():
    y = logits(40)
    spread = Spread()
    spread.add(y[:15])
    spread.add(y[15:])
    mean = y.softmax(-1).mean(0).log()
    expected = float(divergence(mean.expand(40, -1), y).sum())
    assert spread.total() == pytest.approx(expected) and spread.mean == pytest.approx(expected / 40)


def test_every_number_of_classes_has_a_mean_of_its_own():
    parts = logits(12), logits(8, classes=3)
    both, apart = Spread(), [Spread(), Spread()]
    for y, one in zip(parts, apart, strict=True):
        both.add(y)
        one.add(y)
    assert both.total() == pytest.approx(sum(one.total() for one in apart)) and both.rows == 20


def test_predictions_that_are_all_the_same_are_relative_to_their_number():
    spread = Spread()
    spread.add(torch.ones(6, 3))
    assert spread.total() == 6.0 and math.isnan(Spread().mean) and Spread().total() == 0.0
    spread.add(torch.full((2, 3), -math.inf))  # says nothing
    assert spread.total() == 6.0
