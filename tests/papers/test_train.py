"""Batches, splits, training and cached features."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

import tnc  # noqa: E402
from benchmarks.papers.features import features, standardized, trunk  # noqa: E402
from benchmarks.papers.segments import Segments, go_on, pace  # noqa: E402
from benchmarks.papers.train import Data, Recipe, Split, accuracy, once, split  # noqa: E402
from benchmarks.papers.work import _lay_out  # noqa: E402
from tnc.demo.data import Images  # noqa: E402

RECIPE = Recipe(epochs=1, batch=4, rates=(1e-2,))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 5
    return split(Images(x, y, x[:6].copy(), y[:6]), held_out=0.2)


def test_the_last_training_images_are_held_out_and_do_not_move_the_moments(data):
    assert [len(part.y) for part in data[:3]] == [16, 4, 6]
    seen = data.prepared(data.train.x)
    assert seen.shape == (16, 3, 8, 8)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    given = split(Images(*_arrays(data)), mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.testing.assert_close(given.prepared(given.train.x), given.train.x / 255.0)


def _arrays(data):
    for part in (data.train, data.test):
        yield part.x.permute(0, 2, 3, 1).numpy()
        yield part.y.numpy().astype(np.uint8)


def test_every_example_comes_once_an_epoch_in_an_order_of_the_seed(data):
    def orders(seed):
        batches = Segments(data, RECIPE, steps=8, seed=seed, length=8)
        flat = torch.cat([x for x, _ in batches]).flatten(1).sum(1)
        return flat[:16], flat[16:]

    first, second = orders(0)
    assert torch.equal(first.sort().values, second.sort().values) and not torch.equal(first, second)
    assert torch.equal(orders(0)[1], second) and not torch.equal(orders(1)[0], first)


def test_augmented_images_are_shifted_by_at_most_four_pixels_and_flipped_or_not(data):
    plain = data.prepared(data.train.x)
    ((made, _),) = once(data, data.train, seed=3)
    wide = nn.functional.pad(plain, [4] * 4)
    crops = [[side[:, :, a : a + 8, b : b + 8] for a in range(9) for b in range(9)] for side in (wide, wide.flip(3))]
    flips = [any(torch.equal(crop[k], made[k]) for crop in crops[1]) for k in range(16)]
    stays = [any(torch.equal(crop[k], made[k]) for crop in crops[0]) for k in range(16)]
    assert all(a or b for a, b in zip(flips, stays, strict=True)) and any(flips) and any(stays)


def test_training_learns_and_its_pace_is_measured_on_a_copy(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    before = copy.deepcopy(model.state_dict())
    assert pace(model, data, RECIPE) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    go_on(model, Segments(data, RECIPE, steps=30, seed=0, length=30), 1e-2, None)
    assert accuracy(model, data, data.train) == 1.0


@pytest.mark.parametrize(
    ("factorized", "rebuilds", "last"),
    [(False, False, True), (False, True, True), (True, False, False), (True, True, True)],
)
def test_channels_are_last_where_kernels_are_dense_or_rebuilt(factorized, rebuilds, last):
    x = torch.rand(2, 4, 8, 8)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    model = tnc.nn.tensorize(model, tnc.Rule("1.weight", "svd", 2)) if factorized else model
    before = model(x).detach()
    _lay_out(model, rebuilds)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) == last
    torch.testing.assert_close(model(x).detach(), before)


def test_a_trial_is_a_fifth_of_the_steps_and_never_so_few_that_it_says_nothing():
    recipe = Recipe(epochs=1, batch=1, rates=(1e-3, 1e-2))
    assert [recipe.trial(steps) for steps in (50, 364, 1000, 2812)] == [50, 200, 200, 562]


def test_features_are_computed_once(data, tmp_path):
    calls = []

    def made():
        calls.append(1)
        torch.manual_seed(0)
        head = nn.Linear(4, 2)
        return trunk(nn.ModuleDict({"features": nn.Conv2d(3, 4, 8), "classifier": head}))

    plain = features(data, made, tmp_path, copies=1)
    assert plain.train.x.shape == (16, 4) and plain.test.x.shape == (6, 4) and len(calls) == 1
    full = features(data, made, tmp_path, copies=3)
    assert full.train.x.shape == (48, 4) and torch.equal(full.train.y, data.train.y.repeat(3))
    assert torch.equal(full.train.x[:16], plain.train.x) and not torch.allclose(full.train.x[16:32], plain.train.x)
    again = features(data, made, tmp_path, copies=3)
    assert torch.equal(again.train.x, full.train.x) and len(calls) == 2
    expected = made()(data.prepared(data.test.x)).flatten(1)
    torch.testing.assert_close(again.test.x, expected.detach())


def test_features_are_standardized_by_the_training_split_alone():
    y, none = torch.zeros(4, dtype=torch.int64), torch.zeros(1)
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [1.0, 5.0], [3.0, 5.0]])  # the second never varies
    data = standardized(Data(Split(x, y), Split(x + 2, y), Split(10 * x, y), none, none + 1))
    torch.testing.assert_close(data.train.x.std(0), torch.tensor([1.0, 0.0]))
    unit = (4 / 3) ** 0.5
    torch.testing.assert_close(data.validation.x, torch.stack([(x[:, 0] + 2 - 2) / unit, torch.zeros(4)], 1))
    torch.testing.assert_close(data.test.x[:, 0], (10 * x[:, 0] - 2) / unit)


def test_smoothed_labels_keep_outputs_finite(data):
    """Trained to the end, a right label of 1 pulls its output to infinity, one of 0.9 + 0.1 / 5 to log(0.92 / 0.02)."""
    gaps = []
    for smoothing in (0.1, 0.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        recipe = Recipe(epochs=1, batch=16, rates=(1e-2,), smoothing=smoothing)
        go_on(model, Segments(data, recipe, steps=600, seed=0, length=600), 1e-2, None)
        top = model(data.prepared(data.train.x)).detach().topk(2).values
        gaps.append(float((top[:, 0] - top[:, 1]).mean()))
        assert ("smoothed by 0.1" in str(recipe)) == bool(smoothing)
    assert gaps[0] == pytest.approx(np.log(0.92 / 0.02), abs=0.1) and gaps[1] > 2 * gaps[0]
