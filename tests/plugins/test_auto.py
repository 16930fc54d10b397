"""The best of several formats for each weight: with every policy, in new layers, in checkpoints."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import tnc
from tests.ranked import weight_of
from tnc.decomposition import InRoles
from tnc.errors import PluginError, UnknownNameError, WeightError
from tnc.roles import guessed

Auto = tnc.decompositions["auto"]


def weights():
    """Each one has a format that suits it best."""
    rng = np.random.default_rng(0)
    rank = rng.standard_normal((36, 3)) @ rng.standard_normal((3, 48))
    parts = [rng.standard_normal((n, 2)) for n in (24, 12, 3, 3)]
    sums = np.einsum("ar,br,cr,dr->abcd", *parts)
    return {
        "rank": rank,
        "sums": sums + 1e-3 * rng.standard_normal(sums.shape),
        "plain": weight_of((40, 48), power=0.6),
    }


def test_each_weight_gets_what_suits_it():
    rows = {row.name: row for row in tnc.compress_weights(weights(), "auto", rank="budget:0.25").report.rows}
    assert rows["rank"].method == "svd" and rows["rank"].error < 1e-6
    assert rows["sums"].method in ("cp", "tucker") and rows["sums"].error < 1e-2  # a small Tucker holds two terms, too
    assert sum(row.after for row in rows.values()) <= 0.25 * sum(row.before for row in rows.values())


@pytest.mark.parametrize("rank", [0.3, 3, "tolerance:0.5", "budget:0.3"])
def test_no_worse_than_the_best_single_format(rank):
    """A ratio or a rank minimizes the error, a tolerance the size, a budget the sum of squared errors."""
    names, mine = ("svd", "tucker", "tt"), {k: weights()[k] for k in ("rank", "plain")}
    auto = tnc.compress_weights(mine, Auto(among=names), rank=rank).report.rows
    alone = {name: tnc.compress_weights(mine, name, rank=rank).report.rows for name in names}
    assert {row.method for row in auto} <= {*names}
    for k, row in enumerate(auto):
        single = [rows[k] for rows in alone.values()]
        if isinstance(rank, str) and rank.startswith("tolerance"):
            assert row.error <= 0.5 and row.after == min(each.after for each in single)
        elif not isinstance(rank, str):
            assert row.error <= 1.02 * min(each.error for each in single) + 1e-9  # by errors of quick fits
    if rank == "budget:0.3":
        loss = {name: sum(row.error**2 for row in rows) for name, rows in {**alone, "auto": auto}.items()}
        assert loss["auto"] <= 1.05 * min(loss.values())


def test_candidates_are_those_that_were_named():
    auto = tnc.decompositions.parse("auto(among=['svd', 'tt(order=3)'])")
    assert [str(one) for one in auto.candidates] == ["svd", "tt(order=3)"]
    assert str(auto) == "auto(among=('svd', 'tt(order=3)'))" and hash(auto) == hash(tnc.decompositions.parse(str(auto)))
    assert str(Auto()) == "auto" and Auto().step == 1
    rule = tnc.Rule("*", auto, 2)
    assert [type(one) for one in rule.candidates((8, 8))] == [InRoles, InRoles]
    assert rule.decomposed((8, 8)).decomposition == auto.candidates[0]


def test_candidates_that_a_weight_cannot_have_are_passed_over(rng):
    mine = {"w": rng.standard_normal((6, 8)), "v": rng.standard_normal((30, 30))}
    auto = Auto(among=("svd", "tt(rows=(5, 6), columns=(5, 6))"))
    for rank in ("budget:0.5", 1, 0.5):
        rows = {row.name: row.method for row in tnc.compress_weights(mine, auto, rank=rank).report.rows}
        assert rows["w"] in ("svd", "dense") and rows["v"] != "dense"
    assert rows["w"] == "svd"
    small = Auto(among=("svd", "tt(rows=(2, 3), columns=(2, 4))"))  # has no network for the larger one
    for rank in ("budget:0.5", 1, 0.5, "tolerance:0.9"):
        rows = {row.name: row.method for row in tnc.compress_weights(mine, small, rank=rank).report.rows}
        assert rows["v"] == "svd"
    with pytest.raises(WeightError, match="cannot hold"):
        tnc.compress_weights(mine, Auto(among=small.among[1:]), rank=1)


@pytest.mark.parametrize(
    ("among", "error", "words"),
    [
        ((), WeightError, "name one decomposition at least"),
        (("svd", "auto"), WeightError, "other than auto"),
        (("svd", "auto(among=('cp',))"), WeightError, "other than auto"),
        (("svd", "sdv"), UnknownNameError, "'sdv' is not installed"),
        (("tt(ordre=3)",), UnknownNameError, "no field 'ordre'"),
        (("tt(order=",), PluginError, "does not parse|is not a plugin"),
        ((3,), WeightError, "name one"),
    ],
)
def test_refusals(among, error, words):
    with pytest.raises(error, match=words):
        Auto(among=among)


def test_one_name_is_meant_as_one_format():
    assert Auto(among="svd").candidates == (tnc.decompositions["svd"](),)


def test_new_weights_get_the_first_format():
    layer = tnc.nn.Linear(32, 48, decomposition="auto", rank=0.2)
    assert sum(p.numel() for p in layer.parameters()) - 48 <= 0.2 * 32 * 48
    assert layer(torch.randn(3, 32)).shape == (3, 48)
    assert tnc.decompositions["svd"]().network((48, 32), 2) == Auto().network((48, 32), 2)


def test_a_checkpoint_is_loaded_without_it(tmp_path):
    model = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 36))
    tnc.compress(model, "auto", rank="budget:0.3")
    tnc.nn.save(model, tmp_path / "model.safetensors")
    x = torch.randn(2, 40)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", model(x).detach().numpy())
    code = """
import sys, numpy, torch
sys.modules["tnc_plugins"] = None
from torch import nn
import tnc
model = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 36))
tnc.nn.load(model, sys.argv[1] + "/model.safetensors")
x, y = (torch.from_numpy(numpy.load(f"{sys.argv[1]}/{name}.npy")) for name in "xy")
assert torch.allclose(model(x), y, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_roles_and_stacks(rng):
    mine = {"experts": rng.standard_normal((3, 20, 40)), "kernel": rng.standard_normal((16, 12, 3, 3))}
    report = tnc.compress_weights(mine, "auto", rank="budget:0.4").report
    assert all(row.method in Auto().among for row in report.rows)
    assert sum(row.after for row in report.rows) <= 0.4 * sum(row.before for row in report.rows)
    assert guessed((3, 20, 40)).assumed
