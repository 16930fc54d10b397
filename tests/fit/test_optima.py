"""No fit ends behind TensorLy's at the same ranks: a part of the grid of `benchmarks/optima.py`."""

from __future__ import annotations

import pytest

from benchmarks.optima import BEHIND, TARGETS, cell

CELLS = [
    ("noisy rank-8 kernel", "cp", 4),
    ("noisy rank-8 kernel", "cp", 9),
    ("noisy rank-8 kernel", "tt", 3),
    ("kernel of few channels", "ring", 3),
    ("decaying matrix", "cp", 9),
    ("matrix of noise", "tucker", 3),
    ("matrix of noise", "tucker", 5),
    ("four axes of noise", "tucker", 3),
    ("four axes of rank 8", "cp", 9),
    ("four smooth axes", "cp", 4),
]


@pytest.mark.usefixtures("all_starts")
@pytest.mark.parametrize(("target", "name", "rank"), CELLS)
def test_fits_are_not_behind(target, name, rank):
    found = cell(next(one for one in TARGETS if one.name == target), name, rank)
    assert found is not None and found.behind <= BEHIND, found
