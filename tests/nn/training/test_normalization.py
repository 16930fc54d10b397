"""Batch normalization keeps its statistics in training where the model does better with them."""

from __future__ import annotations

import copy
import json
import math

import pytest

import tnc
from tnc.errors import CheckpointError, TncError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.nn.clouds import QUIET, correct, loader, same, state  # noqa: E402
from tnc import storage  # noqa: E402
from tnc.nn.training.heal_rate import Trials  # noqa: E402


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64),
                         nn.ReLU(), nn.Linear(64, 10))  # fmt: skip


@pytest.fixture(scope="module")
def dense():
    model = normed()
    tnc.nn.heal(model, loader(1000), epochs=3, lr=1e-2, **QUIET)
    return model.eval()


def statistics(model):
    return {name: x for name, x in state(model).items() if "running" in name or "tracked" in name}


def of_one_class_each():
    """Batches whose statistics serve no model."""
    every = [(x, y) for x, y in loader(1000, 2, batch=200, shuffle=False)]
    return [(x[y == k], y[y == k]) for x, y in every for k in range(10)]


def test_statistics_that_serve_the_model_are_kept(dense):
    """The batches are of another kind than the test: what was learned about all classes would be lost with them."""
    model = copy.deepcopy(dense)
    history = tnc.nn.heal(model, of_one_class_each(), epochs=1, lr=1e-4, **QUIET)
    assert history.batch_norm == "frozen" and same(statistics(model), statistics(dense))
    assert not torch.equal(model[1].weight, dense[1].weight)  # its scale is trained
    assert correct(model, loader(500, 3)) > 0.9


def test_a_new_network_uses_the_statistics_of_its_batches():
    model = normed()
    history = tnc.nn.heal(model, loader(1000), epochs=1, lr=1e-2, **QUIET)
    assert history.batch_norm == "training" and not same(statistics(model), statistics(normed()))
    assert correct(model, loader(500, 3)) > 0.9


def test_a_batch_of_one_sample_has_no_statistics(dense):
    """torch refuses to train with them, so that those of the model are kept."""
    model, batches = copy.deepcopy(dense), list(loader(65, shuffle=False))
    assert len(batches[-1][0]) == 1
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        tnc.nn.heal(copy.deepcopy(model), batches, epochs=1, lr=1e-4, batch_norm="training", **QUIET)
    assert tnc.nn.heal(model, batches, epochs=1, lr=1e-4, **QUIET).batch_norm == "frozen"


@pytest.mark.parametrize("way", ["frozen", "training"])
def test_what_is_given_is_done(dense, way):
    model = copy.deepcopy(dense)
    modes = [module.training for module in model.modules()]
    history = tnc.nn.heal(model, loader(300), epochs=1, lr=1e-4, batch_norm=way, **QUIET)
    assert history.batch_norm == way and same(statistics(model), statistics(dense)) == (way == "frozen")
    assert [module.training for module in model.modules()] == modes


def test_the_choice_changes_nothing_by_itself(dense):
    """The same weights whether it was found or given, and a model without such layers reads no batch for it."""
    found, given = copy.deepcopy(dense), copy.deepcopy(dense)
    history = tnc.nn.heal(found, loader(300), epochs=1, lr=1e-3, **QUIET)
    tnc.nn.heal(given, loader(300), epochs=1, lr=1e-3, batch_norm=history.batch_norm, **QUIET)
    assert same(state(found), state(given))

    class Counted(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    data = Counted(loader(128))
    tnc.nn.heal(nn.Linear(32, 10), data, epochs=1, lr=1e-3, **QUIET)
    assert data.passes == 1


def test_an_iterator_is_looked_at_without_losing_a_batch(dense):
    """It ends as a list of the same batches does, with a rate that is found, too."""
    data = list(loader(640, shuffle=False))
    for options in ({"lr": 1e-3}, {"lr": "auto"}):
        of_list, of_iterator = copy.deepcopy(dense), copy.deepcopy(dense)
        steady = {"epochs": 1, "schedule": lambda done: 1.0, **options, **QUIET}
        first = tnc.nn.heal(of_list, data, **steady)
        second = tnc.nn.heal(of_iterator, iter(data), **steady)
        assert (first.rate, first.batch_norm) == (second.rate, second.batch_norm)
        assert same(state(of_list), state(of_iterator))


def test_an_iterator_with_a_length_keeps_it(dense):
    """The schedule is asked in every step, as for a list, and not only between passes."""

    class Counting:
        def __init__(self, batches):
            self.left, self.count = iter(batches), len(batches)

        def __len__(self):
            return self.count

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.left)

    data = list(loader(640, shuffle=False))
    of_list, of_iterator = copy.deepcopy(dense), copy.deepcopy(dense)
    tnc.nn.heal(of_list, data, epochs=1, **QUIET)
    tnc.nn.heal(of_iterator, Counting(data), epochs=1, **QUIET)
    assert same(state(of_list), state(of_iterator))


def test_a_rate_that_is_found_does_not_change_the_choice(dense):
    """Four mixed batches, then batches of one class each: whether these are read depends on the rate."""
    mixed = list(loader(256, 4, shuffle=False))
    x, y = next(iter(loader(2000, 5, batch=2000, shuffle=False)))
    data = mixed + [(x[y == k], y[y == k]) for k in range(10)] * 3
    found, given = copy.deepcopy(dense), copy.deepcopy(dense)
    history = tnc.nn.heal(found, data, epochs=1, **QUIET)
    assert history.batch_norm == tnc.nn.heal(given, data, epochs=1, lr=history.rate, **QUIET).batch_norm == "training"
    assert same(state(found), state(given))


@pytest.mark.parametrize(("kept", "found"), [(1e-4, 3e-3), (3e-3, 3e-2)])
@pytest.mark.parametrize("gain", [0.1, -0.1, None])
def test_trials_without_the_statistics_may_win_and_then_choose_their_own_rate(dense, monkeypatch, gain, kept, found):
    """With the statistics `kept` is best. Without them `found` is, and at the rate `kept` the gain is `gain`."""
    tried = []

    def result(trials, rate, frozen):
        tried.append((rate, frozen))
        if frozen:
            return 20 + math.log10(rate / kept) ** 2
        if gain is None:
            raise ValueError("Expected more than 1 value per channel when training")
        return 20 - gain + math.log10(rate / found) ** 2 - math.log10(kept / found) ** 2

    monkeypatch.setattr(Trials, "_tried", result)
    model, batches = copy.deepcopy(dense), of_one_class_each()
    history = tnc.nn.heal(model, batches, epochs=1, lr="auto", **QUIET)
    assert (history.batch_norm, history.rate) == (("training", found) if gain == 0.1 else ("frozen", kept))
    assert len(tried) == len(set(tried))  # no trial is made twice
    given = copy.deepcopy(dense)
    tnc.nn.heal(given, batches, epochs=1, lr=history.rate, batch_norm=history.batch_norm, **QUIET)
    assert same(state(model), state(given))


def test_a_run_goes_on_with_the_choice_of_its_file(dense, tmp_path):
    """Whatever the model that it goes on with would choose. Files from before there was a choice have none."""
    path, options = tmp_path / "run.safetensors", {"epochs": 2, "lr": 1e-3, **QUIET}
    fresh = normed()
    tnc.nn.heal(fresh, loader(300), checkpoint=path, **options)
    other = copy.deepcopy(dense)
    assert tnc.nn.heal(other, loader(300), checkpoint=path, **options).batch_norm == "training"
    assert same(state(other), state(fresh))
    with pytest.raises(CheckpointError, match="batch_norm=None there, 'frozen' here"):
        tnc.nn.heal(other, loader(300), checkpoint=path, batch_norm="frozen", **options)
    with storage.opened(path) as contents:
        header, (arrays, narrow) = json.loads(contents.metadata["tnc.run"]), contents.arrays()
    del header["frozen"]
    storage.write(path, arrays, {"tnc.run": json.dumps(header), "format": "pt"}, narrow)
    assert tnc.nn.heal(other, loader(300), checkpoint=path, **options).batch_norm == "training"
    header["frozen"] = "often"
    storage.write(path, arrays, {"tnc.run": json.dumps(header), "format": "pt"}, narrow)
    with pytest.raises(CheckpointError, match="frozen is 'often': true or false is needed"):
        tnc.nn.heal(other, loader(300), checkpoint=path, **options)


def test_an_unknown_way_is_refused(dense):
    before = state(dense)
    with pytest.raises(TncError, match=r"batch_norm='kept': it must be one of auto, frozen, training"):
        tnc.nn.heal(dense, loader(128), batch_norm="kept", **QUIET)
    assert same(state(dense), before)
