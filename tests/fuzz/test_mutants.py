"""Files that are damaged, and files that strangers write: no raw error, no other network, no hang."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.mutants import DAMAGE, STRANGERS, run
from tests.fuzz.originals import FIRST, checkpoints, content, loaded, originals, sealed, split

SCALE = int(os.environ.get("TNC_FUZZ", "1"))
"""How many times as many cases as in the usual tests."""


def test_the_originals_are_well():
    for checkpoint, raw in zip(checkpoints(), originals(), strict=True):
        assert content(loaded(raw)) == content(checkpoint) == content(loaded(sealed(*split(raw))))
    assert len(loaded(FIRST)) == 6


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed(kind):
    found, bad = run(kind, 0, 100 * SCALE)
    assert bad == [] and found["refused"] > 0 and found["usable"] == 0


@pytest.mark.parametrize("kind", STRANGERS)
def test_files_of_strangers_are_refused_or_usable(kind):
    found, bad = run(kind, 0, 100 * SCALE)
    assert bad == [] and found["refused"] > 0
