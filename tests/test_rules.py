"""Rules: which weights, which decomposition and how much of it, as text and as values."""

from __future__ import annotations

import pytest

import tnc
from tnc import Fixed, Ratio, Rule, Tolerance
from tnc.errors import PluginError, RankError, UnknownNameError, WeightError

MPO, SVD, TUCKER = (tnc.decompositions[name] for name in ("mpo", "svd", "tucker"))


def test_rules_from_text():
    assert Rule.parse("*.fc*=mpo(order=4)@ratio:0.1") == Rule("*.fc*", MPO(order=4), Ratio(0.1))
    assert Rule.parse(" * = svd @ 8 ") == Rule("*", SVD(), Fixed(8))
    assert Rule.parse("a=tucker@4,4") == Rule("a", TUCKER(), Fixed((4, 4)))
    rule = Rule.parse("w=mpo(rows=(4, 4), columns=(2, 8))@tolerance:0.02")
    assert rule == Rule("w", MPO(rows=(4, 4), columns=(2, 8)), Tolerance(0.02))


def test_rules_take_names_classes_and_instances():
    assert Rule("*", "svd", 4) == Rule("*", SVD, 4) == Rule("*", SVD(), Fixed(4))
    assert Rule("*", None).decomposition is None and Rule("*", None).rank is None


@pytest.mark.parametrize("text", ["", "svd", "*=svd", "svd@4", "=svd@4", "*=@4", "*=svd@"])
def test_rules_that_are_not_understood(text):
    with pytest.raises(RankError, match=r"is not understood: write"):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Rule("*", "mop", 4), UnknownNameError, "Did you mean 'mpo'"),
        (lambda: Rule("*", "mpo(ordre=2)", 4), UnknownNameError, "Did you mean 'order'"),
        (lambda: Rule("*", "mpo(order=2", 4), PluginError, "is not a plugin"),
        (lambda: Rule("*", "mpo(order=...)", 4), PluginError, "does not parse"),
        (lambda: Rule("*", "mpo(order=1e999)", 4), PluginError, "does not parse"),
        (lambda: Rule("*", f"mpo(order={'-' * 100_000}1)", 4), PluginError, "does not parse"),
        (lambda: Rule("*", f"mpo(order={'1+' * 100_000}1)", 4), PluginError, "does not parse"),
        (lambda: Rule("fc*", "svd"), RankError, r"rule 'fc\*': no rank given; write rank=8"),
        (lambda: Rule("*", "svd", 0), RankError, "rank 0: a whole number of at least 1"),
        (lambda: Rule("*", "svd", -0.1), RankError, r"Ratio\(-0.1\)"),
        (lambda: Rule("*", "svd", "8x"), RankError, "'8x' is not understood"),
        (lambda: Rule("fc*", 3, 4), WeightError, r"rule 'fc\*': 3 is neither a decomposition nor a plugin's name"),
        (lambda: Rule("fc*", dict, 4), WeightError, "neither a decomposition"),
    ],
)
def test_impossible_rules(make, error, words):
    with pytest.raises(error, match=words):
        make()
