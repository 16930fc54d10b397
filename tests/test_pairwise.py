"""Pairwise cases: every two values meet, with few cases, the same ones each time."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest

from tests.pairwise import cover, groups_of, thinned

SIZES = [(3, 4), (2, 2, 2), (8, 9, 3), (6, 2, 3, 3), (11, 4, 3, 2), (3, 1, 2), (2,) * 10]


def cases_of(sizes):
    return [{f"p{k}": value for k, value in enumerate(values)} for values in product(*map(range, sizes))]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_pair_of_values_occurs(sizes):
    cases = cases_of(sizes)
    chosen = cover(cases)
    found = [cases[k] for k in chosen]
    for (i, m), (j, n) in product(enumerate(sizes), repeat=2):
        if i < j:
            assert {(case[f"p{i}"], case[f"p{j}"]) for case in found} == set(product(range(m), range(n)))
    assert chosen == sorted(set(chosen)) == cover(cases)


@pytest.mark.parametrize(("sizes", "most"), [((3, 4), 12), ((8, 9, 3), 80), ((6, 2, 3, 3), 22), ((2,) * 10, 12)])
def test_few_cases_are_left(sizes, most):
    assert len(cover(cases_of(sizes))) <= most


def test_only_pairs_that_occur_are_asked_for():
    """Two names that are given together have fewer pairs than their product."""
    cases = [{"axes": k, "options": k, "method": m} for k in range(5) for m in range(3)]
    assert cover(cases) == list(range(15))
    assert cover([{"a": 1}, {"a": 2}]) == [0, 1] and cover([{}]) == [0] and cover([]) == []
    assert groups_of({"b": 2, "a": 1}) == {(("a", 1), ("b", 2))}


@pytest.mark.parametrize("sizes", [(8, 3), (2, 9, 4), (5,)], ids=str)
def test_every_value_alone_takes_as_many_cases_as_there_are_values(sizes):
    cases = cases_of(sizes)
    found = [cases[k] for k in cover(cases, 1)]
    assert len(found) == max(sizes)
    assert all({case[f"p{k}"] for case in found} == set(range(n)) for k, n in enumerate(sizes))


class Item:
    """As much of a pytest item as is looked at."""

    def __init__(self, name, case, marks):
        self.nodeid, self.callspec, self.marks = f"{name}{list(case.values())}", SimpleNamespace(params=case), marks

    def get_closest_marker(self, name):
        return SimpleNamespace(kwargs={}) if name in self.marks else None


@pytest.fixture
def items():
    return [
        Item(name, case, {*marks, *(("gpu",) if case["p2"] == 2 else ())})
        for name, marks in (("test_marked", ("pairwise",)), ("test_plain", ()))
        for case in cases_of((3, 3, 3))
    ]


def test_only_marked_functions_are_thinned_and_other_devices_are_not(items, monkeypatch):
    monkeypatch.delenv("TNC_PRODUCT", raising=False)
    kept, gone = thinned(items)
    assert [item for item in items if item not in gone] == kept and len(kept) + len(gone) == len(items)
    assert {item.nodeid.partition("[")[0] for item in gone} == {"test_marked"}
    assert not any("gpu" in item.marks for item in gone)
    assert 9 <= sum(item.nodeid.startswith("test_marked") and "gpu" not in item.marks for item in kept) <= 10


def test_the_whole_product_runs_where_it_is_asked_for(items, monkeypatch):
    monkeypatch.setenv("TNC_PRODUCT", "1")
    assert thinned(items) == (items, [])
