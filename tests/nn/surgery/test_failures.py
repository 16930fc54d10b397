"""A failure on the way leaves a model exactly as it was, and says which weight it was about."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import pytest

import tnc
from tnc.errors import CheckpointError, MatchError, TncError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc_plugins.svd import SVD  # noqa: E402

loading, replace = (import_module(f"tnc.nn.surgery.{name}") for name in ("loading", "replace"))


@dataclass(frozen=True)
class Faulty(SVD):
    """Fits the first weight, and then does something else."""

    fault: str = "raise"
    left: int = 18

    def fit(self, x, network, *, seed=0, metric=None):
        cores = super().fit(x, network, seed=seed)
        if x.shape[0] != self.left:
            return cores
        return {
            "raise": lambda: 1 / 0,
            "refuse": lambda: (_ for _ in ()).throw(WeightError("not this one")),
            "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
            "shapes": lambda: [core.T for core in cores],
            "too few": lambda: cores[:1],
            "too many": lambda: [*cores, cores[0]],
            "nan": lambda: [core * float("nan") for core in cores],
            "infinite": lambda: [core * float("inf") for core in cores],
            "nothing": lambda: None,
            "words": lambda: ["a", "b"],
            "lists": lambda: [core.tolist() for core in cores],
        }[self.fault]()


TOLD = {
    "refuse": (WeightError, "1.weight: not this one"),
    "shapes": (WeightError, "1.weight: cores of shapes"),
    "too few": (WeightError, "1.weight: cores of shapes"),
    "too many": (WeightError, "1.weight: cores of shapes"),
    "words": (TncError, "1.weight"),
    "lists": (TncError, "1.weight"),
}


@pytest.fixture
def model(planted):
    return planted.plant(nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 18), nn.GRU(18, 12)))


@pytest.mark.parametrize("fault", TOLD)
def test_a_plugin_that_returns_garbage(planted, model, fault):
    before = planted.snapshot(model)
    error, said = TOLD[fault]
    with pytest.raises(error, match=said):
        tnc.compress(model, Faulty(fault), rank=2)
    assert planted.snapshot(model) == before


@pytest.mark.parametrize("fault", ["nan", "infinite"])
def test_a_fit_that_is_not_finite_is_not_taken(planted, model, fault):
    """The weight stays dense, the report says why, and the others are compressed."""
    weight = model[1].weight
    rows = {row.name: row for row in tnc.compress(model, Faulty(fault), rank=2).tnc_report.rows}
    assert rows["1.weight"].method == "dense" and "no better than a weight of zeros" in rows["1.weight"].note
    assert model[1].weight is weight and isinstance(model[0], tnc.nn.Linear)


@pytest.mark.parametrize(
    ("fault", "error"), [("raise", ZeroDivisionError), ("nothing", TypeError), ("interrupt", KeyboardInterrupt)]
)
def test_a_plugin_that_raises(planted, model, fault, error):
    """Its own error is shown, with a note on where it happened."""
    before = planted.snapshot(model)
    with pytest.raises(error) as caught:
        tnc.compress(model, Faulty(fault), rank=2)
    assert planted.snapshot(model) == before
    if error is not KeyboardInterrupt:
        assert caught.value.__notes__ == [f"while compressing 1.weight with {Faulty(fault)}@2"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("start", ["dense", "factorized"])
def test_a_failure_while_replacing(planted, model, monkeypatch, error, at, start):
    """Between two weights the model is half new: it goes back."""
    checkpoint = tnc.compress_weights(model.state_dict(), "svd", rank=2)
    if start == "factorized":
        tnc.compress(model, [tnc.Rule("2.weight_ih_l0", "svd", 3), tnc.Rule("0.*", "svd", 3)])
    before, real, calls = planted.snapshot(model), replace.attach, []

    def attach(*args, **keywords):
        done = real(*args, **keywords)
        calls.append(args)
        if len(calls) > at:
            raise error("pulled the plug")
        return done

    monkeypatch.setattr(replace, "attach", attach)
    monkeypatch.setattr(loading, "attach", attach)
    rule = "*" if start == "dense" else "[12].*"
    if start == "dense" or at < 2:  # two weights are left to replace
        with pytest.raises(error):
            tnc.compress(model, tnc.Rule(rule, "svd", 2))
        assert planted.snapshot(model) == before
    expected = model(torch.ones(5, 24))[0]
    calls.clear()
    with pytest.raises(error):
        tnc.install(model, checkpoint)
    structure = planted.snapshot(model)[0]
    assert structure == before[0]
    assert planted.gap(model(torch.ones(5, 24))[0], expected) < 1e-5
    monkeypatch.undo()
    tnc.install(model, checkpoint)
    assert planted.gap(model(torch.ones(5, 24))[0], expected) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_named(planted, model, value):
    with torch.no_grad():
        model[1].weight[3, 4] = value
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(WeightError, match=r"1\.weight has entries that are NaN or infinite"):
        tnc.compress(model, "svd", rank=2)
    assert [type(m) for m in model.modules()] == kinds
    tnc.compress(model, [tnc.Rule("1.*", None), tnc.Rule("*", "svd", 2)])


def test_complex_and_whole_numbers_are_named():
    model = nn.Module()
    model.waves = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
    model.codes = nn.Parameter(torch.ones(8, 8, dtype=torch.long), requires_grad=False)
    with pytest.raises(WeightError, match=r"waves has dtype torch\.complex64"):
        tnc.compress(model, "svd", rank=2)
    with pytest.raises(WeightError, match=r"codes has dtype torch\.int64"):
        tnc.compress(model, tnc.Rule("codes", "svd", 2))


def test_a_rule_that_matches_nothing_says_what_there_is(planted, model):
    before = planted.snapshot(model)
    with pytest.raises(MatchError, match=r"'fc\*' matches no weight. Names: 0\.weight, 0\.bias, 1\.weight"):
        tnc.compress(model, tnc.Rule("fc*", "svd", 2))
    with pytest.raises(MatchError, match="no floating-point weight of two or more axes"):
        tnc.compress(model, tnc.Rule("*bias*", "svd", 2))
    assert planted.snapshot(model) == before


def test_a_model_without_weights(planted):
    with pytest.raises(MatchError, match=r"matches no weight\. Names: none"):
        tnc.compress(nn.ReLU(), "svd", rank=2)


def test_what_is_not_worth_it_stays_dense(planted, model):
    before = planted.snapshot(model)
    tnc.compress(model, "svd", rank=1000)
    assert {row.method for row in model.tnc_report.rows} == {"dense"}
    assert all("would keep" in row.note for row in model.tnc_report.rows)
    del model.tnc_report
    assert planted.snapshot(model) == before


def test_a_missing_folder_is_named(planted, model, tmp_path):
    tnc.compress(model, "svd", rank=2)
    with pytest.raises(CheckpointError, match="nowhere"):
        tnc.nn.save(model, tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        tnc.nn.load(model, tmp_path / "model.safetensors")
