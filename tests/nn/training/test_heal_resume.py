"""Healing that was interrupted ends the same, to the last bit; a checkpoint of another run is refused."""

from __future__ import annotations

import copy
from functools import partial

import pytest

import tnc
from tnc.errors import CheckpointError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.utils.data import DataLoader  # noqa: E402

from tests.nn.clouds import QUIET, blobs, loader, net, same, small, state  # noqa: E402


class Interrupted:
    """Data whose third pass ends in the middle."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        for k, batch in enumerate(super().__iter__()):
            if self.passes == 3 and k == 4:
                raise KeyboardInterrupt
            yield batch


class CutList(Interrupted, list):
    pass


class CutLoader(Interrupted, DataLoader):
    pass


@pytest.mark.parametrize("generator", [False, True], ids=["global", "own"])
def test_an_interrupted_run_ends_the_same(trained, tmp_path, generator):
    """To the last bit: shuffling, dropout, running means, Adam, the best epoch and the record are all there."""
    torch.manual_seed(0)
    given = nn.Sequential(small(trained), nn.BatchNorm1d(10), nn.Dropout(0.2))
    options = {"validation": loader(200, 2), "teacher": trained, "epochs": 4, "weight_decay": 0.1, "seed": 3, **QUIET}

    def data(kind=DataLoader):
        own = {"generator": torch.Generator().manual_seed(9)} if generator else {}
        return kind(blobs(320, 1), 32, shuffle=True, **own)

    whole, path = copy.deepcopy(given), tmp_path / "run.safetensors"
    expected = tnc.nn.heal(whole, data(), **options)
    with pytest.raises(KeyboardInterrupt):
        tnc.nn.heal(copy.deepcopy(given), data(CutLoader), checkpoint=path, **options)
    torch.manual_seed(77)
    for _ in range(2):  # the second time there is nothing left to do
        model = copy.deepcopy(given)
        found = tnc.nn.heal(model, data(), checkpoint=path, **options)
        assert same(state(model), state(whole))
        assert (found.best, found.before) == (expected.best, expected.before) and len(found.epochs) == 4
        for a, b in zip(found.epochs, expected.epochs, strict=True):
            assert (a.loss, a.accuracy, a.validation) == (b.loss, b.accuracy, b.validation)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_bfloat16_resumes_too(tmp_path):
    """What NumPy cannot hold is kept as it is."""
    given, data = small(net()).bfloat16(), [(x.bfloat16(), y) for x, y in loader(256)]
    whole = copy.deepcopy(given)
    tnc.nn.heal(whole, data, epochs=2, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        tnc.nn.heal(copy.deepcopy(given), CutList(data * 2), epochs=3, checkpoint=tmp_path / "run", **QUIET)
    model = copy.deepcopy(given)
    tnc.nn.heal(model, data * 2, epochs=3, checkpoint=tmp_path / "run", **QUIET)
    again = copy.deepcopy(given)
    tnc.nn.heal(again, data * 2, epochs=3, **QUIET)
    assert same(state(model), state(again)) and not same(state(again), state(whole))


class Steps:
    def __init__(self, end):
        self.end = end

    def __call__(self, done):
        return 1.0 if done < 0.5 else self.end


SMOOTH = partial(nn.functional.cross_entropy, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ({}, {"loss": nn.CrossEntropyLoss()}, "loss=.*'cross_entropy'.* there, .*'CrossEntropyLoss'.* here"),
        ({"loss": SMOOTH}, {"loss": partial(SMOOTH, label_smoothing=0.2)}, "'label_smoothing': 0.1.*: 0.2"),
        (
            {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
            {"loss": nn.CrossEntropyLoss(label_smoothing=0.2)},
            "'label_smoothing': 0.1.*: 0.2",
        ),
        ({}, {"schedule": lambda done: 1.0}, "schedule="),
        ({"schedule": Steps(0.1)}, {"schedule": Steps(0.2)}, "schedule=.*0.1.*0.2"),
        ({"patience": 2}, {"patience": 3}, "patience=2 there, 3 here"),
        ({}, {"patience": 3}, "patience=None there, 3 here"),
        ({"eps": 1e-4}, {"eps": 1e-3}, "eps=0.0001 there, 0.001 here"),
        ({}, {"eps": 1e-3}, "eps=None there, 0.001 here"),
    ],
    ids=["kind", "partial", "smoothing", "schedule", "steps", "patience", "none", "eps", "usual eps"],
)
def test_other_functions_and_patience_are_another_run(trained, tmp_path, first, then, said):
    path, data = tmp_path / "run", list(loader(128))
    options = {"validation": data, "epochs": 1, "checkpoint": path, **QUIET}
    tnc.nn.heal(small(trained), data, **options, **first)
    done = tnc.nn.heal(small(trained), data, **options, **copy.deepcopy(first))  # the same, made anew
    assert len(done.epochs) == 1
    with pytest.raises(CheckpointError, match=said):
        tnc.nn.heal(small(trained), data, **options, **first | then)


def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path):
    path, data = tmp_path / "run.safetensors", loader(128)
    tnc.nn.heal(small(trained), data, epochs=1, checkpoint=path, **QUIET)
    other = small(trained, rank=3)
    for model, options, said in (
        (small(trained), {"epochs": 2}, "epochs=1 there, 2 here"),
        (small(trained), {"epochs": 1, "teacher": trained}, "teacher=False there, True here"),
        (other, {"epochs": 1}, "0.tnc_weight.0"),
    ):
        before = state(model)
        with pytest.raises(CheckpointError, match=said):
            tnc.nn.heal(model, data, checkpoint=path, **options, **QUIET)
        assert same(before, state(model))
    tnc.nn.save(other, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        tnc.nn.heal(other, data, checkpoint=path, **QUIET)
    with pytest.raises(CheckpointError, match="does not exist"):
        tnc.nn.heal(other, data, epochs=1, checkpoint=tmp_path / "none" / "run", **QUIET)
