"""The page on reliability: sections of different runs stand side by side."""

from __future__ import annotations

import json
import os

from tests.fuzz import sections
from tests.fuzz.__main__ import SECTIONS
from tests.fuzz.sections import Section, apart, keep, page


def test_sections_merge(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sections, "RESULTS", tmp_path / "results.json")
    one = Section("One thing", "What was tried.", ("what", "times"), [("a", 1234)], 1234, [], 7, 3.2)
    keep("one", one)
    keep("two", Section("Two, more", "Others.", ("what", "times"), [("b", 1)], 1, ["b, seed 7: it broke"], 7))
    keep("one", Section(one.title, one.words, one.heads, [("a", 5678)], 5678, [], 8))
    text = (tmp_path / "page.md").read_text()
    assert "| a | 5,678 |" in text and "1,234" not in text and "* b, seed 7: it broke" in text
    assert "| Two, more | 1 | 1 |" in text and "seed 8; python" in text
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["one", "two"]


def crash(k):
    if k == 1:
        os.abort()
    return k


def test_a_crash_is_seen():
    assert apart(crash, [(0,), (1,), (2,)]) == [0, None, 2]


def test_the_page_is_that_of_the_results():
    assert sections.PAGE.read_text(encoding="utf-8") == page(json.loads(sections.RESULTS.read_text(encoding="utf-8")))
    assert set(SECTIONS) <= set(json.loads(sections.RESULTS.read_text(encoding="utf-8")))
