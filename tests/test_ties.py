"""Names of one array: compressed once, and still one afterwards."""

from __future__ import annotations

import pytest

import tnc
from tnc import Rule, compress_weights


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_tied_weights_are_factorized_once(backend, rng):
    place = tnc.backends.get(backend)
    x = place.from_numpy(rng.standard_normal((16, 24)))
    found = compress_weights({"in.weight": x, "bias": x[0], "out.weight": x}, "svd", rank=2)
    assert found.aliases == {"out.weight": "in.weight"} and list(found.factorized) == ["in.weight"]
    assert found["out.weight"] is found["in.weight"]
    rows = {row.name: row for row in found.report.rows}
    assert rows["out.weight"].note == "tied to in.weight" and rows["out.weight"].before == 0
    assert found.report.total == 16 * 24 + 24


def test_a_rule_for_one_of_two_tied_names_is_enough(rng):
    x = rng.standard_normal((16, 24))
    found = compress_weights({"a": x, "b": x}, Rule("b", "svd", 2))
    assert list(found.factorized) == ["a"] and found["b"] is found["a"]


def test_tied_dense_weights_stay_tied(rng):
    x = rng.standard_normal((16, 24))
    found = compress_weights({"a": x, "b": x, "c": x.copy()}, Rule("c", "svd", 2))
    assert found.aliases == {"b": "a"} and found["b"] is x


def test_equal_weights_are_not_tied(rng):
    x = rng.standard_normal((16, 24))
    assert not compress_weights({"a": x, "b": x.copy(), "c": x.T}, "svd", rank=2).aliases
