"""What decides stays dense under the catch-all rule, the report says why, and a rule that names it takes it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tnc
from tnc.errors import MatchError
from tnc.nn.surgery.deciding import SMALL_TABLE


class Raw(nn.Module):
    """Parameters of its own."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


class MixtralTopKRouter(nn.Module):
    def __init__(self, experts, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, size))


class SwitchRouter(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(64, 8, bias=False)


class GatedUnit(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 12)


class RMSNorm(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


def model_of(**parts):
    """A model of these parts, and of one layer that every rule takes."""
    return nn.ModuleDict({"body": nn.Linear(40, 48), **parts})


LEFT = {
    "gate": (lambda: model_of(gate=nn.Linear(64, 8)), "gate.weight", "router"),
    "router": (lambda: model_of(moe=nn.ModuleDict({"router": nn.Linear(64, 4)})), "moe.router.weight", "router"),
    "router by its class": (lambda: model_of(choice=MixtralTopKRouter(8, 64)), "choice.weight", "router"),
    "classifier of a router": (lambda: model_of(choice=SwitchRouter()), "choice.classifier.weight", "router"),
    "raw gate": (lambda: model_of(moe=Raw(wg=(64, 8))), "moe.wg", "router"),
    "one row": (lambda: model_of(head=nn.Linear(512, 1)), "head.weight", "axis of one"),
    "one column": (lambda: model_of(time=nn.Linear(1, 64)), "time.weight", "axis of one"),
    "state space": (lambda: model_of(mixer=Raw(A_log=(96, 16))), "mixer.A_log", "no linear map"),
    "bias table": (lambda: model_of(attention=Raw(bias_table=(49, 4))), "attention.bias_table", "no linear map"),
    "positions": (lambda: model_of(position_ids=nn.Embedding(512, 48)), "position_ids.weight", "positions"),
    "positions of GPT-2": (lambda: model_of(wpe=nn.Embedding(512, 48)), "wpe.weight", "positions"),
    "raw positions": (lambda: model_of(vit=Raw(pos_embed=(197, 96))), "vit.pos_embed", "positions"),
    "positions of one sample": (lambda: model_of(vit=Raw(tokens=(1, 197, 96))), "vit.tokens", "positions"),
    "small table": (lambda: model_of(words=nn.Embedding(100, 40)), "words.weight", "table of fewer"),
    "small bag": (lambda: model_of(words=nn.EmbeddingBag(100, 40)), "words.weight", "table of fewer"),
    "norm of torch": (lambda: model_of(last=nn.LayerNorm((48, 40))), "last.weight", "normalization"),
    "norm": (lambda: model_of(last=RMSNorm(48, 40)), "last.weight", "normalization"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEFT)
def test_left_dense_unless_named(kind):
    make, name, words = LEFT[kind]
    model = tnc.compress(make(), "svd", rank=0.5)
    rows = {row.name: row for row in model.tnc_report.rows}
    assert rows["body.weight"].method == "svd"
    assert rows[name].method == "dense" and words in rows[name].note
    assert f"tnc.Rule('{name}', ...)" in rows[name].note
    assert isinstance(dict(model.named_parameters()).get(name), nn.Parameter)
    if words == "axis of one":
        return
    pattern = name.replace(name[:3], "*", 1)
    for rule in (tnc.Rule(name, "svd", 1), tnc.Rule(pattern, "svd", 1)):
        named = tnc.compress(make(), [rule, tnc.Rule("*", "svd", 0.5)])
        assert {row.name: row.method for row in named.tnc_report.rows}[name] == "svd"


TAKEN = {
    "a gate as wide as a layer": (lambda: model_of(gate=nn.Linear(64, 48)), "gate.weight"),
    "a gated unit": (lambda: model_of(unit=GatedUnit()), "unit.inner.weight"),
    "a projection to a gate": (lambda: model_of(gate_proj=nn.Linear(96, 12)), "gate_proj.weight"),
    "a large table": (lambda: model_of(words=nn.Embedding(SMALL_TABLE // 32, 32)), "words.weight"),
    "a weight of an unknown layer": (lambda: model_of(own=Raw(weight=(24, 40))), "own.weight"),
    "a large raw parameter": (lambda: model_of(own=Raw(projection=(40, 64))), "own.projection"),
    "experts": (lambda: model_of(own=Raw(experts=(2, 40, 64))), "own.experts"),
    "a layer about positions": (lambda: model_of(position_projection=nn.Linear(48, 40)), "position_projection.weight"),
    "a narrow head": (lambda: model_of(head=nn.Linear(256, 10)), "head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_taken(kind):
    make, name = TAKEN[kind]
    rows = {row.name: row for row in tnc.compress(make(), "svd", rank=1).tnc_report.rows}
    assert rows[name].method == "svd"


@pytest.mark.parametrize("layer", [nn.Embedding(24, 18), nn.EmbeddingBag(24, 18), Raw(a=(24, 18))])
@pytest.mark.parametrize("around", [nn.Sequential, lambda layer: layer], ids=["in a model", "alone"])
def test_a_model_that_has_nothing_else_is_given_for_it(layer, around):
    (row,) = tnc.compress(around(copy.deepcopy(layer)), "svd", rank=2).tnc_report.rows
    assert row.method == "svd"


def test_roles_of_a_rule_say_that_it_is_a_map():
    rule = tnc.Rule("*", "svd", 1, roles="columns rows")
    rows = {row.name: row for row in tnc.compress(nn.ModuleDict({"own": Raw(a=(24, 40))}), rule).tnc_report.rows}
    assert rows["own.a"].method == "svd"


def test_a_table_that_is_an_output_layer_too_is_a_map():
    model = nn.ModuleDict({"words": nn.Embedding(100, 40), "head": nn.Linear(40, 100, bias=False)})
    model["head"].weight = model["words"].weight
    rows = {row.name: row.method for row in tnc.compress(model, "svd", rank=3).tnc_report.rows}
    assert sorted(rows.values()) == ["svd", "tied"]


def test_nothing_else_that_a_rule_takes():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 40))
    with pytest.raises(
        MatchError, match=r"Passed over: 0.weight, as it is a table of fewer than 16,384 entries; to fac"
    ):
        tnc.compress(model, [tnc.Rule("1.*", None), tnc.Rule("*", "svd", 1)])
    assert isinstance(model[0].weight, nn.Parameter) and not hasattr(model, "tnc_report")


def test_names_with_brackets():
    model = nn.ModuleDict({"a[0]": nn.Embedding(20, 8), "body": nn.Linear(40, 48)})
    rows = {row.name: row.method for row in tnc.compress(model, "svd", rank=1).tnc_report.rows}
    assert rows == {"a[0].weight": "dense", "body.weight": "svd"}


def test_the_choice_of_experts_does_not_change(rng):
    """The same experts for every input, although all other weights are compressed."""
    model = nn.ModuleDict({"gate": nn.Linear(64, 8), "up": nn.Linear(64, 96)})
    x = torch.randn(200, 64)
    before = model["gate"](x).topk(2).indices
    tnc.compress(model, "svd", rank="budget:0.2")
    assert torch.equal(model["gate"](x).topk(2).indices, before)


def test_a_whole_budget_counts_them():
    model = model_of(words=nn.Embedding(100, 40))
    total = sum(p.numel() for p in model.parameters())
    tnc.compress(model, "svd", rank="budget:0.8,whole")
    kept = sum(p.numel() for p in model.parameters())
    assert 0.95 * 0.8 * total <= kept <= 0.8 * total
