"""The report: totals that add up, a table a person reads, JSON a machine reads, a picture."""

from __future__ import annotations

import builtins
import json

import pytest

from tnc import Report
from tnc.errors import MissingExtraError
from tnc.report import Row

ROWS = [
    Row("layer.0.weight", "mpo(order=4)", (40, 50), (4, 8, 4), 2000, 300, 412, 0.125, 1.5),
    Row("layer.1.weight", "dense", (2, 3), (), 6, 6, 6, 0.0, 0.01, "rank 1 of svd already keeps 5 of 6"),
    Row("head.weight", "tied", (40, 50), note="tied to layer.0.weight"),
]


def test_totals():
    report = Report(ROWS, total=5000)
    assert (report.before, report.after) == (2006, 306)
    assert report.ratio == pytest.approx(306 / 2006)
    assert (report.total, report.total_after) == (5000, 3300)
    assert Report(ROWS).total == 2006
    assert Report([]).ratio == 1.0 and Report([]).total_after == 0


def test_the_table_says_everything():
    text = str(Report(ROWS, total=5000))
    for words in (
        *("layer.0.weight", "mpo(order=4)", "40x50", "4 8 4", "2,000", "300", "0.1250", "1.50", "as asked 412"),
        *("dense", "rank 1 of svd already keeps 5 of 6", "tied to layer.0.weight"),
        *("306 of 2,006 matched parameters kept (15.25%)", "3,300 of 5,000 in all"),
    ):
        assert words in text, words
    assert "as asked 6" not in text
    assert repr(Report(ROWS)) == "<Report: 3 weights, 306 of 2,006 parameters kept>"


def test_the_bytes_of_weights_kept():
    report = Report(ROWS, total=5000).keeping({"layer.0.weight": 8000, "elsewhere": 7})
    assert [row.kept for row in report.rows] == [8000, 0, 0] and report.total == 5000
    assert "evaluation may keep 8.0 kB of rebuilt weights" in str(report)
    assert "may keep" not in str(report.keeping({}))
    assert Report.from_json(report.to_json()).rows == report.rows


def test_an_empty_table():
    assert "0 of 0 matched parameters kept (100.00%)" in str(Report([]))


@pytest.mark.parametrize("name", ["w[0]", "[bold]w", "a[/b]c", "[red]", "x[link=y]z", "\\[a]"])
def test_names_are_shown_as_they_are(name):
    row = Row(name, "svd", (2, 2), (1,), 4, 4, 4, note=f"note of {name}")
    text = str(Report([row]))
    assert name in text and f"note of {name}" in text


def test_json_there_and_back():
    report = Report(ROWS, total=5000)
    again = Report.from_json(report.to_json())
    assert again.rows == report.rows and again.total == 5000
    data = json.loads(report.to_json())
    assert data["rows"][0]["ranks"] == [4, 8, 4] and data["rows"][1]["note"] == ROWS[1].note
    assert Report.from_json(Report([]).to_json()).rows == ()


@pytest.mark.parametrize("rows", [ROWS, [], ROWS[:1]], ids=len)
def test_picture(rows, tmp_path):
    pytest.importorskip("matplotlib")
    Report(rows).picture(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    Report(rows).picture(str(tmp_path / "report.svg"))
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_a_picture_needs_the_extra(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module.startswith("matplotlib"):
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'tncompress\[plot\]'"):
        Report(ROWS).picture(tmp_path / "report.png")
