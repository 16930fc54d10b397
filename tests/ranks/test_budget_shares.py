"""What a budget counts and how near it comes: every format, parameters, bytes, operations, whole models."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import tnc
from tests.ranked import weight_of
from tnc import Budget, Network
from tnc.decomposition import InRoles
from tnc.errors import RankError
from tnc.fit import Factor, Metric
from tnc.jobs import Weighing
from tnc.ranks.curves import Point, Subject
from tnc.ranks.measures import MEASURES
from tnc.roles import guessed

SHAPES = [(64, 64), (64, 64), (96, 64), (128, 64), (64, 128), (256, 128), (32, 16, 3, 3), (32, 32, 3, 3)]


@cache
def weights():
    """Weights as in a network: spectra that fall slowly and quickly."""
    found = {}
    for k, shape in enumerate(SHAPES):
        matrix = weight_of((shape[0], int(np.prod(shape[1:]))), seed=k, power=(0.2, 1.0, 0.5, 0.7)[k % 4])
        found[f"w{k}"] = matrix.reshape(shape)
    return found


def kept(chosen):
    return sum(n.n_params if isinstance(n, Network) else weights()[name].size for name, n in chosen.items())


SLOW = ("btt", "cp", "ring", "str")
"""Fits by least squares: for these the large weights are left out."""

NEAR = dict.fromkeys((name for name in tnc.decompositions if name != "auto"), 0.99) | {"adtn": 0.93}
"""How much of the budget is used. Layers of ADTN are large, and all of one size: what is left is less than one."""


@pytest.mark.parametrize("plugin", NEAR)
def test_nearly_all_of_a_budget_is_used(plugin):
    which = ("w0", "w1", "w3", "w6") if plugin in SLOW else list(weights())
    mine = {name: weights()[name] for name in which}
    chosen = Budget(0.3).assign(mine, tnc.decompositions[plugin]())
    assert NEAR[plugin] * 0.3 <= kept(chosen) / sum(x.size for x in mine.values()) <= 0.3


def subjects(names, metric=False, which=None):
    made = {}
    for name, x in weights().items():
        candidates = tuple(InRoles(tnc.decompositions.parse(n), guessed(x.shape)) for n in names)
        inputs = Metric((Factor((1,), np.arange(1.0, x.shape[1] + 1) ** -1.5),)) if metric else None
        if which is None or name in which:
            made[name] = Subject(x, candidates, inputs, itemsize=2)
    return made


def loss(given, found):
    """The sum of the predicted rises."""
    return sum(given[name].importance * point.error for name, point in found.items() if isinstance(point, Point))


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("of", ["parameters", "bytes", "flops"])
def test_more_is_never_worse(of, metric):
    given, losses = subjects(["svd"], metric), []
    measure = MEASURES[of](4)
    dense = sum(measure.dense(subject) for subject in given.values())
    for ratio in (0.1, 0.11, 0.2, 0.4, 0.41, 0.8, 1.0):
        found = Budget(ratio, of=of, batch=4).plan(given, {})
        sizes = {
            name: measure.of(point.network, given[name]) if isinstance(point, Point) else measure.dense(given[name])
            for name, point in found.items()
        }
        assert sum(sizes.values()) <= ratio * dense
        assert sum(sizes.values()) >= 0.99 * ratio * dense
        losses.append(loss(given, found))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-12


def test_bytes_count_the_dtype():
    """A weight of two bytes has room for twice the parameters."""
    same = subjects(["svd"])["w3"]
    narrow, wide = (Subject(same.x, same.candidates, itemsize=n) for n in (2, 4))
    found = Budget(0.4, of="bytes").plan({"narrow": narrow, "wide": wide}, {})
    params = {name: found[name].network.n_params for name in found}
    assert params["narrow"] > params["wide"]
    assert 2 * params["narrow"] + 4 * params["wide"] <= 0.4 * 6 * 128 * 64


def test_the_best_of_several_formats_is_never_worse():
    names, which = ("svd", "tucker", "tt"), ("w0", "w6")
    for metric in (False, True):
        several = subjects(names, metric, which)
        together = loss(several, Budget(0.3).plan(several, {}))
        # Alone, but predicted in the same way: with the others among the candidates, networks are fitted.
        alone = [loss(s, Budget(0.3).plan(s, {})) for s in (subjects((name,) * 2, metric, which) for name in names)]
        assert together <= min(alone) * (1 + 1e-9)


def test_a_whole_budget_counts_the_others(rng):
    mine = {"a": weight_of((64, 64)), "b": weight_of((64, 96)), "other": rng.standard_normal((40, 40))}
    mine["bias"] = rng.standard_normal(300)
    total = sum(x.size for x in mine.values())
    rules = [tnc.Rule("other", None), tnc.Rule("*", "svd", Budget(0.5, whole=True))]
    report = tnc.compress_weights(mine, rules).report
    after = sum(row.after for row in report.rows) + 1600 + 300
    assert 0.98 * 0.5 * total <= after <= 0.5 * total
    half = tnc.compress_weights(mine, [tnc.Rule("other", None), tnc.Rule("*", "svd", Budget(0.5))]).report
    assert sum(row.after for row in half.rows) > after - 1900  # the others do not count
    with pytest.raises(RankError, match=r"smallest budget possible is 0\.\d+"):
        tnc.compress_weights(mine, [tnc.Rule("other", None), tnc.Rule("*", "svd", Budget(0.15, whole=True))])
    with pytest.raises(RankError, match="whole model"):
        tnc.compress_weights(mine, [tnc.Rule("a", "svd", 2), tnc.Rule("*", "svd", Budget(0.5, whole=True))])


def test_one_weight_alone_meets_a_budget():
    """A model is often one large weight and a few small ones."""
    for name in ("svd", "tt", "cp", "ring"):
        mine = {"large": weight_of((96, 128)), "small": weight_of((10, 12))}
        chosen = Budget(0.37).assign(mine, tnc.decompositions[name]())
        sizes = [n.n_params if isinstance(n, Network) else mine[key].size for key, n in chosen.items()]
        assert 0.37 * 12408 - 250 <= sum(sizes) <= 0.37 * 12408, name  # one rank is 224 parameters of svd


def test_a_whole_budget_of_bytes_counts_the_bytes_of_others(rng):
    mine = {"a": weight_of((64, 64)).astype(np.float32), "other": rng.standard_normal((40, 40))}
    rules = [tnc.Rule("other", None), tnc.Rule("*", "svd", Budget(0.8, of="bytes", whole=True))]
    (row,) = tnc.compress_weights(mine, rules).report.rows
    total = 4 * 64 * 64 + 8 * 1600
    assert 0.98 * 0.8 * total <= 4 * row.after + 8 * 1600 <= 0.8 * total


def test_importance_decides():
    mine = {"a": weights()["w0"], "b": weights()["w0"].copy()}
    eye = Metric((Factor((1,), np.ones(64)),))
    for heavy, light in (("a", "b"), ("b", "a")):
        report = tnc.compress_weights(
            mine, "svd", rank="budget:0.4", weighings={heavy: Weighing(eye, 50.0), light: Weighing(eye, 1.0)}
        ).report
        rows = {row.name: row for row in report.rows}
        assert rows[heavy].after > rows[light].after


def test_operations_of_layers_that_are_used_often():
    """A convolution at many places takes most of the operations, and so gives most of them."""
    given = subjects(["cp"], which=("w3", "w6"))
    often = {name: Subject(s.x, s.candidates, uses=400.0 if name == "w6" else 1.0) for name, s in given.items()}
    measure = MEASURES["flops"](1)
    found = Budget(0.3, of="flops").plan(often, {})
    assert not isinstance(found["w3"], Point)  # it is worth nothing to compress it
    assert measure.of(found["w6"].network, often["w6"]) <= 0.3 * sum(map(measure.dense, often.values()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Budget(0.3, of="watts"), "one of parameters, bytes, flops"),
        (lambda: Budget(0.3, of="flops", batch=0), "batch=0"),
        (lambda: Budget(0.3, of="flops", whole=True), "matched weights only"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(RankError, match=words):
        make()
