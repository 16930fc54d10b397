"""A run's file is checked before it is used: damaged or hostile, it is refused and changes nothing."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import tnc
from tnc.errors import CheckpointError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tests.fuzz.originals import joined, sealed, split  # noqa: E402
from tnc.nn.training.parameter_groups import parameter_groups  # noqa: E402
from tnc.nn.training.resume import Epoch, Run, Score  # noqa: E402

SETTINGS = {"epochs": 3, "lr": 1e-3, "loss": ["cross_entropy", {}]}


class Counting(nn.Linear):
    """A module with a state of its own."""

    def __init__(self):
        super().__init__(12, 8)
        self.seen = {"batches": 0}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        if state["batches"] < 0:
            raise ValueError("no such number")
        self.seen = state


def fresh(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(Counting(), nn.BatchNorm1d(8), nn.Linear(8, 6).bfloat16())
    tnc.compress(model, tnc.Rule("0.*", "svd", 2))
    groups = parameter_groups(model, 1e-3)
    return Run(model, torch.optim.AdamW([group | {"base": group["lr"]} for group in groups]))


def trained():
    """After one epoch that was judged, and one more."""
    run = fresh(1)
    run.judge(Score(2.0, 0.5))
    for k in range(2):
        run.model[0].seen = {"batches": k + 1}
        run.model[2](run.model[1](run.model[0](torch.randn(4, 12))).bfloat16()).float().sum().backward()
        run.optimizer.step()
        run.epochs.append(Epoch(1.0, float("nan"), 0.1, Score(1.5, 0.6)))
        run.judge(Score(1.5 + k, 0.6))
    return run


def held(run):
    """All that a run is, to compare."""
    state, slots = run.model.state_dict(), run.optimizer.state_dict()
    plain = {name: x.tolist() if torch.is_tensor(x) else copy.deepcopy(x) for name, x in state.items()}
    moments = {k: {key: x.tolist() for key, x in slot.items()} for k, slot in slots["state"].items()}
    return repr(
        (
            plain,
            moments,
            slots["param_groups"],
            run.epochs,
            run.before,
            run.best,
            sorted((run.best_state or {}).items()),
        )
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run.safetensors"
    trained().save(path, SETTINGS)
    return path.read_bytes()


def test_a_run_comes_back(raw, tmp_path):
    (tmp_path / "run").write_bytes(raw)
    run, expected = fresh(), trained()
    run.load(tmp_path / "run", SETTINGS)
    assert held(run) == held(expected) and run.model[0].seen == {"batches": 2} and run.best == 1
    run.finish()
    assert run.model[0].seen == {"batches": 1}


def refused(raw, tmp_path, said=None):
    (tmp_path / "run").write_bytes(raw)
    run = fresh()
    before = held(run)
    with pytest.raises(CheckpointError, match=said):
        run.load(tmp_path / "run", SETTINGS)
    assert held(run) == before


def test_damage_is_noticed_and_changes_nothing(raw, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(150):
        spoilt = bytearray(raw)
        spoilt[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        refused(bytes(spoilt), tmp_path)
    for length in rng.integers(len(raw), size=20):
        refused(raw[:length], tmp_path)


def test_a_file_without_digests_is_refused(raw, tmp_path):
    layout, data = split(raw)
    del layout["__metadata__"]["tnc.digests"]
    refused(joined(layout, data), tmp_path, "cannot go on.*no digests.*Delete it")


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(header):
        at = header
        for step in path:
            at = at[step]
        at[last] = value

    return change


def lose(name):
    return lambda header: header.pop(name)


HEADERS = {
    "no settings": (lose("settings"), "has no 'settings'"),
    "no groups": (lose("groups"), "has no 'groups'"),
    "no epochs": (lose("epochs"), "has no 'epochs'"),
    "more": (put("more", 1), "'more'"),
    "settings a list": (put("settings", []), "an object is needed"),
    "another setting": (put("settings", "lr", 2.0), "lr=2.0 there, 0.001 here"),
    "a setting more": (put("settings", "extra", 1), "extra=1 there, None here"),
    "groups a number": (put("groups", 3), "a list is needed"),
    "a group less": (lambda h: h["groups"].pop(), "groups of parameters"),
    "a rate more": (put("groups", 0, "betas", [0, 0]), "'betas'"),
    "a rate of words": (put("groups", 0, "lr", "fast"), "lr of group 0 is 'fast'"),
    "a rate true": (put("groups", 0, "lr", True), "a number is needed"),
    "a rate nan": (put("groups", 0, "eps", float("nan")), "eps of group 0 is nan"),
    "a rate negative": (put("groups", 0, "lr", -1.0), "a finite number from 0 on"),
    "a rate infinite": (put("groups", 0, "weight_decay", float("inf")), "a finite number"),
    "an epoch of words": (put("epochs", 0, "one"), "epoch 1 is 'one'"),
    "an epoch's loss": (put("epochs", 0, "loss", None), "loss of epoch 1 is None"),
    "an epoch's seconds": (put("epochs", 1, "seconds", -1), "seconds of epoch 2"),
    "a validation of three": (put("epochs", 0, "validation", [1, 2, 3]), "a loss and an accuracy"),
    "a validation less": (put("epochs", 0, "validation", None), "some have none"),
    "before": (put("before", {}), "a list is needed"),
    "before less": (put("before", None), "some have none"),
    "best": (put("best", 9), "the best epoch is 9, of 2"),
    "best negative": (put("best", -1), "a whole number"),
    "best 1.0": (put("best", 1.0), "a whole number"),
}


@pytest.mark.parametrize(("change", "said"), HEADERS.values(), ids=HEADERS)
def test_what_a_header_says_is_checked(raw, tmp_path, change, said):
    layout, data = split(raw)
    header = json.loads(layout["__metadata__"]["tnc.run"])
    change(header)
    layout["__metadata__"]["tnc.run"] = json.dumps(header)
    refused(sealed(layout, data), tmp_path, said)


@pytest.mark.parametrize("words", ["", "[]", "nothing", "[" * 100_000, '{"best": 1, "best": 2}', "null"])
def test_a_header_that_is_none(raw, tmp_path, words):
    layout, data = split(raw)
    layout["__metadata__"]["tnc.run"] = words
    refused(sealed(layout, data), tmp_path, "cannot go on")


def renamed(old, new):
    def change(layout):
        layout[new] = layout.pop(old)

    return change


TENSORS = {
    "a weight": (renamed("model.0.bias", "model.0.biass"), "another run: 0.bias, 0.biass"),
    "a weight's shape": (put("model.0.tnc_weight.0", "shape", [4, 4]), "another run: 0.tnc_weight.0"),
    "a weight's dtype": (put("model.0.bias", "dtype", "I32"), "another run: 0.bias"),
    "bfloat16": (put("model.2.bias", "dtype", "F16"), "another run: 2.bias"),
    "of the best": (renamed("best.0.bias", "best.bias"), "another run: 0.bias, bias"),
    "a moment": (renamed("optimizer.0.exp_avg", "optimizer.0.avg"), "state, 0.exp_avg is missing"),
    "a moment's shape": (put("optimizer.0.exp_avg", "shape", [4, 4]), "0.exp_avg is missing or of another shape"),
    "steps": (put("optimizer.0.step", "dtype", "I32"), "0.step is missing or"),
    "of no parameter": (renamed("optimizer.0.step", "optimizer.99.step"), "0.step is missing"),
    "of no number": (renamed("optimizer.0.step", "optimizer.step"), "0.step is missing"),
    "of nothing": (renamed("model.0.bias", "bias"), "another run: 0.bias"),
}


@pytest.mark.parametrize(("change", "said"), TENSORS.values(), ids=TENSORS)
def test_tensors_are_those_of_the_model_and_the_optimizer(raw, tmp_path, change, said):
    layout, data = split(raw)
    change(layout)
    refused(sealed(layout, data), tmp_path, said)


def test_tensors_that_belong_to_nothing(raw, tmp_path):
    layout, data = split(raw)
    for name, said in (("x", "belong to nothing: x"), ("optimizer.7x.step", "no parameters for 7x.step")):
        more = {**layout, name: {"dtype": "F32", "shape": [], "data_offsets": [len(data), len(data) + 4]}}
        refused(sealed(more, data + bytes(4)), tmp_path, said)


def test_a_model_that_refuses_stays_as_it_was(tmp_path):
    run = trained()
    run.model[0].seen = {"batches": -1}
    run.save(tmp_path / "run", SETTINGS)
    refused((tmp_path / "run").read_bytes(), tmp_path, "does not take the state of the run: no such number")


def test_a_frozen_model_says_so(raw, tmp_path):
    (tmp_path / "run").write_bytes(raw)
    run = fresh()
    tnc.nn.freeze(run.model)
    with pytest.raises(CheckpointError, match=r"tnc\.nn\.unfreeze"):
        run.load(tmp_path / "run", SETTINGS)
