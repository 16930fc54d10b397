"""SIGKILL at any moment of a save."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.kills import run
from tests.fuzz.test_mutants import SCALE


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX")
def test_a_killed_save_leaves_a_whole_file(tmp_path):
    found, bad = run(tmp_path, 0, min(50, 4 * SCALE))
    assert bad == [] and sum(found.values()) >= 4
