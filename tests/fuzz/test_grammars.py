"""Patterns and rules of any text: an error of ours, or a value that is read back from what it prints."""

from __future__ import annotations

import pytest

from tests.fuzz.grammars import GRAMMARS, run
from tests.fuzz.test_mutants import SCALE


@pytest.mark.parametrize("kind", GRAMMARS)
def test_any_text(kind):
    found, bad = run(kind, 0, 1000 * SCALE)
    assert bad == [] and found["refused"] > 0 and found["read"] > 0
