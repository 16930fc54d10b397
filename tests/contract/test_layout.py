"""Views of arrays as matrices: the right entries, and turned only where they lie in memory that way."""

from __future__ import annotations

import numpy as np
import pytest

from tnc.contract.executor import viewed
from tnc.contract.layout import operand

SIZES = {"a": 2, "b": 3, "c": 5}
CASES = [
    (("a", "b"), ("a",), ("b",), False),
    (("a", "b"), ("b",), ("a",), True),  # the fastest index belongs to the rows
    (("a", "b", "c"), ("c", "a"), ("b",), True),
    (("a", "b", "c"), ("b",), ("a", "c"), False),
    (("a", "b"), ("a", "b"), (), False),  # one column: nothing to turn
    ((), (), (), False),
]


@pytest.mark.parametrize(("source", "rows", "columns", "turned"), CASES, ids=str)
def test_an_operand_is_a_matrix_of_its_rows_and_columns(source, rows, columns, turned, rng):
    array = rng.standard_normal([SIZES[i] for i in source])
    view = operand(source, tuple((i,) for i in source), ((), rows, columns), SIZES)
    assert view.turn is turned
    order = [source.index(i) for i in (*rows, *columns)]
    expected = array.transpose(order).reshape(int(np.prod([SIZES[i] for i in rows])), -1)
    found = viewed(array, view, np, {})
    found = found.reshape(found.shape[-2:])
    assert np.array_equal(found.T if turned else found, expected)
