"""The report: totals that add up, a table a person reads, JSON a machine reads, a picture."""

from __future__ import annotations

import builtins
import json

import pytest

from tnc import Report
from tnc.errors import MissingExtraError
from tnc.report import Candidate, Row

ROWS = [
    Row("layer.0.weight", "mpo(order=4)", (40, 50), (4, 8, 4), 2000, 300, 412, 0.125, 1.5),
    Row("layer.1.weight", "dense", (2, 3), (), 6, 6, 6, 0.0, 0.01, "rank 1 of svd already keeps 5 of 6"),
    Row("head.weight", "tied", (40, 50), note="tied to layer.0.weight"),
]

CALIBRATED = [
    Row(
        "a", "cp", (4, 5), (1,), 20, 9, 9, 0.5, output_error=0.25, predicted=0.0625, itemsize=4, operations_before=200,
        operations_after=90,
        candidates=(Candidate("svd", 9, 0.07), Candidate("cp", 9, 0.0625), Candidate("tt", 30, None)),
    ),
    Row("b", "dense", (2, 2), (), 4, 4, 4, note="too small", itemsize=2, operations_before=4, operations_after=4),
]  # fmt: skip

FACTS = {
    "samples": 384, "held_out": 128, "distance": 0.061, "objective": "fisher", "shift": False, "recalibrated": False,
    "distances": {"output": 0.118, "fisher": 0.061, "shift": 0.068, "recalibrated": 0.149}, "biases": 3,
    "seconds": {"statistics": 1.5}, "of": None,
}  # fmt: skip


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


def test_totals_in_bytes_and_operations():
    report = Report(CALIBRATED)
    assert report.bytes == (88, 44) and report.operations == (204, 94)
    assert Report(ROWS).bytes is None and Report(ROWS).operations is None  # nobody knows
    assert Report([CALIBRATED[0], ROWS[2]]).bytes == (80, 36)  # a tied name has no size of its own
    assert Report([CALIBRATED[0], ROWS[1]]).operations == (200, 90)


def test_json_with_everything():
    report = Report(CALIBRATED, calibration=FACTS)
    again = Report.from_json(report.to_json())
    assert again.rows == report.rows and again.calibration == FACTS
    assert isinstance(again.rows[0].candidates[0], Candidate)
    assert again.to_dict() == report.to_dict() and json.loads(report.to_json())["rows"][0]["output_error"] == 0.25
    assert "calibration" not in Report(ROWS).to_dict()
    again.calibration["samples"] = 7
    assert report.calibration["samples"] == 384  # it is a copy


def test_older_json_has_fewer_members():
    old = {"total": 4, "rows": [{"name": "w", "method": "dense", "shape": [2, 2], "before": 4, "after": 4}]}
    report = Report.from_json(json.dumps(old))
    assert report.rows[0] == Row("w", "dense", (2, 2), before=4, after=4) and report.calibration == {}


def test_a_report_keeps_its_calibration():
    report = Report(ROWS).calibrated(FACTS)
    assert report.rows == tuple(ROWS) and report.keeping({}).calibration == FACTS


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
