"""Healing outlives `kill -9`: a few moments here, TNC_FUZZ times fifty where that is set."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")

from tests.fuzz.kill_heal import kills


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_a_killed_run_goes_on_to_the_same_bytes():
    times = int(os.environ.get("TNC_FUZZ", "0"))
    count = 50 * times or 3
    found = kills(count, seed=times)
    assert found["tried"] == count
    assert {name: found[name] for name in ("damaged", "otherwise", "failed")} == {
        "damaged": 0,
        "otherwise": 0,
        "failed": 0,
    }
