"""Where the papers' data sets are looked for: folders of the test's own, and no network."""

from __future__ import annotations

import pytest


@pytest.fixture
def root(monkeypatch, tmp_path):
    """An empty folder for TNC_DATA; no user's folder is read or written, and nothing is fetched."""
    from benchmarks.papers.data import fetch

    made = tmp_path / "data"
    made.mkdir()
    monkeypatch.setenv("TNC_DATA", str(made))
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    for tool in ("npm", "apt"):
        monkeypatch.setattr(fetch, tool, lambda *_: pytest.fail("a test asked for a download"))
    return made
