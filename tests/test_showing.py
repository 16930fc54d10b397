"""Reports for people: columns that say something, captions in words, nothing that a name could break."""

from __future__ import annotations

import re

import pytest

from tests.test_report import CALIBRATED, FACTS, ROWS
from tnc import Report, showing
from tnc.report import Candidate, Row


def headings(rows):
    return [column.heading for column in showing.columns(rows)]


def test_columns_that_would_be_empty_are_left_out():
    assert headings(ROWS) == ["name", "method", "shape", "ranks", "before", "after", "error", "seconds", "note"]
    assert {"output error", "predicted"} <= set(headings(CALIBRATED))
    assert headings([])  # a table of no rows has headings
    text = str(Report(CALIBRATED))
    assert "0.2500" in text and "6.25e-02" in text and "too small" in text


def test_the_note_says_what_else_was_considered():
    note = showing.columns(CALIBRATED)[-1].cells[0]
    assert note == "instead of svd 7.00e-02"  # a prediction that is no number says nothing
    larger = Row("a", "cp", (4, 5), (1,), 20, 9, 9, candidates=(Candidate("cp", 9, 0.3), Candidate("svd", 18, 0.1)))
    assert showing.columns([larger])[-1].cells == ["instead of svd 1.00e-01 at 18"]


def test_the_caption_says_what_was_done():
    words = showing.caption(Report(CALIBRATED, calibration=FACTS))
    first, second = words.splitlines()
    assert first == (
        "13 of 24 matched parameters kept (54.17%); 13 of 24 in all; 44 bytes of 88 bytes; 94 of 204 multiplications a "
        "sample"
    )
    assert second == (
        "384 inputs; outputs are 0.061 away from the dense model's on 128 held-out inputs; objective fisher (0.061; "
        "output 0.118); fitted again in order: no (0.068); batch normalization re-estimated: no (0.149)"
    )
    assert re.sub(r"\s+", " ", words) in re.sub(r"\s+", " ", str(Report(CALIBRATED, calibration=FACTS)))


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"samples": 3},
        {"distances": 7, "objective": "output"},
        {"distance": float("inf")},
        {"objective": "x"},
        {"a": 1},
    ],
    ids=str,
)
def test_a_caption_of_few_facts(facts):
    assert showing.caption(Report(ROWS, calibration=facts)).startswith("306 of 2,006")


def test_a_dry_run_says_what_it_predicts_by():
    assert showing.caption(Report(ROWS, calibration={"samples": 9, "objective": "fisher"})).endswith(
        "\n9 inputs; predicted by fisher"
    )


def test_what_was_kept_is_said():
    facts = FACTS | {"shift": True, "recalibrated": True}
    words = showing.caption(Report(CALIBRATED, calibration=facts))
    assert "in order: yes (0.068)" in words and "re-estimated: yes (0.149)" in words


HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=y>", "a&b", '"quoted"', "line\nbreak", "\x1b[31mred"]


@pytest.mark.parametrize("name", HOSTILE)
def test_html_escapes_everything(name):
    row = Row(name, f"cp{name}", (2, 2), (1,), 4, 4, 4, note=name)
    made = Report([row], calibration={"samples": 3, "objective": name, "distances": {name: 1.0}})._repr_html_()
    tags = set(re.findall(r"<[^>]*>", made))
    assert tags <= {
        f"<{slash}{tag}>" for slash in ("", "/") for tag in ("table", "thead", "tbody", "tr", "th", "td", "p")
    }
    assert "\x1b" not in made and "http" not in made


def test_html_has_the_table_and_the_caption():
    made = Report(CALIBRATED, calibration=FACTS)._repr_html_()
    assert made.count("<tr>") == 3 and made.count("<p>") == 2 and "<td>cp</td>" in made and "384 inputs" in made
