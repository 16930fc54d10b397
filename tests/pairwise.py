"""Which cases of a product to run, so that every two values of two parameters still meet.

A fault that three values must meet to show is rare; one that one or two values show is found by these cases, too.
`TNC_PRODUCT=1` runs the whole product.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest

Case = Mapping[str, Hashable]
Group = tuple[tuple[str, Hashable], ...]


def groups_of(case: Case, together: int = 2) -> set[Group]:
    """Every so many parameters of a case, with their values."""
    return set(combinations(sorted(case.items()), together))


def cover(cases: Sequence[Case], together: int = 2) -> list[int]:
    """Positions of cases in which every pair occurs that occurs in any: each next one adds as many as it can.

    Parameters
    ----------
    cases : sequence of mapping
        The values, or their numbers, by the names of the parameters.
    together : int
        2 for pairs, 1 for every value alone.

    Returns
    -------
    list of int
        Positions in rising order; the same for the same cases.
    """
    left = {k: groups_of(case, together) for k, case in enumerate(cases)}
    missing = set().union(*left.values()) if left else set()
    if not missing:  # fewer parameters: every case is a value of its own
        return list(range(len(cases)))
    chosen = []
    while missing:
        # Of several that add as much, the one that shares least with what is there would need a search: the first.
        best = max(left, key=lambda k: (len(left[k] & missing), -k))
        missing -= left.pop(best)
        chosen.append(best)
    return sorted(chosen)


def thinned(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Items to run and items to leave out: functions marked `pairwise` keep a cover of their cases.

    Cases of a device that is not on every machine stay complete: they are skipped at once where it is missing.
    """
    if os.environ.get("TNC_PRODUCT"):
        return list(items), []
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("pairwise") and not item.get_closest_marker("gpu") and hasattr(item, "callspec"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    gone = set()
    for group in groups.values():
        # Values by identity: they need not be hashable, and pytest numbers those of one function anew.
        cases = [{name: id(value) for name, value in item.callspec.params.items()} for item in group]
        marker = group[0].get_closest_marker("pairwise")
        kept = set(cover(cases, marker.kwargs.get("together", 2)))
        gone |= {id(item) for k, item in enumerate(group) if k not in kept}
    return [item for item in items if id(item) not in gone], [item for item in items if id(item) in gone]
