"""The generated sections of the papers' index: the summary with its figure at the top, and what was not run."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers import report
from benchmarks.papers.plan import LONG, SEEDS, SPEED, Cost
from benchmarks.papers.state import write_text
from benchmarks.papers.study import Row
from tnc.errors import TncError

__all__ = ["not_run", "ours", "summary", "update"]

FIGURE = "summary.svg"
EMPTY = """\
# Papers, reproduced

<!-- summary: begin -->
<!-- summary: end -->

<!-- not run: begin -->
<!-- not run: end -->
"""

Section = tuple[str, Sequence[Row]]
"""The name of a paper, and the rows of one of its networks."""
Waiting = tuple[str, Row, Cost]
"""The name of a paper, a row that nobody has started, and what it takes."""


def update(out: Path, sections: Sequence[Section], waiting: Sequence[Waiting]) -> None:
    """Write the sections between their markers in ``index.md``, and the figure beside it.

    Raises
    ------
    TncError
        The index lacks a marker, or a file cannot be written.
    """
    path = out / "index.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else EMPTY
    shown = figure(sections, out / FIGURE)
    text = _between(text, "summary", summary(sections, shown), path)
    write_text(path, _between(text, "not run", not_run(waiting), path))


def _between(text: str, name: str, content: str, path: Path) -> str:
    """The text with new content between the two markers of a section."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if not 0 <= text.find(begin) < text.find(end):
        raise TncError(f"{path} lacks the lines {begin!r} and {end!r}: write them where that section belongs")
    head, tail = text[: text.index(begin)], text[text.index(end) :]
    return f"{head}{begin}\n\n{content}\n\n{tail}"


# -------------------------------------------------------------------------------------------------- summary


def ours(rows: Sequence[Row]) -> Row | None:
    """The row of the paper's method that the summary shows, of those that were run.

    It is the one for which the paper states an accuracy, or else a factor of compression, or else anything. Among
    several it is the best one on validation.
    """
    run = [row for row in rows if row["kind"] == "paper" and row["runs"]]

    def rank(row: Row) -> tuple[bool, bool, float]:
        return _stated(row) is not None, "factor" in row["published"], _validation(row)

    return max(run, key=rank, default=None)


def summary(sections: Sequence[Section], shown: bool) -> str:
    """One line per network: published against ours, dense and compressed, in per cent of the test images."""
    head = ("paper", "network", "published: dense", "compressed", "ours: dense", "compressed", "row", "parameters")
    lines = []
    for name, rows in sections:
        dense, best = rows[0], ours(rows)
        if best is None and not dense["runs"]:
            continue
        stated = next((row for row in rows if row["kind"] == "paper" and _stated(row) is not None), None)
        given = (best or stated or {"published": {}})["published"]
        cells = [f"[{name}]({name}.md)", f"{dense['net']} on {dense['data']}"]
        cells += [str(dense["published"].get("accuracy", "")), str(given.get("accuracy", given.get("factor", "")))]
        cells += [_ours(dense), _ours(best) if best else "not run"]
        cells += [best["method"], f"{best['replaced']:,} of {best['dense_replaced']:,}"] if best else ["", ""]
        lines.append(cells)
    text = (
        "Accuracy in per cent of the test images, mean ± sample deviation (number of seeds), with the share of the "
        "schedule if that is not all. The row is the one for which the paper states an accuracy or a factor of "
        "compression, else the best on validation. Parameters are those of the replaced layers."
    )
    parts = [text, report.lines(head, lines, left=2)]
    if shown:
        parts.append(f"![Accuracy against the parameters of the replaced layers, all networks]({FIGURE})")
    return "\n\n".join(parts)


def _ours(row: Row) -> str:
    """The accuracy of a row, with the share of the schedule that it had."""
    if not row["runs"]:
        return "not run"
    taken, full = min(run["steps"] for run in row["runs"]), row["full_steps"]
    share = f", {taken / full:.0%} of the steps" if 0 < taken < full else ""
    return report.mean_and_deviation(row["runs"]) + share


def _validation(row: Row) -> float:
    return statistics.fmean(run.get("validation", 0.0) for run in row["runs"])


def _stated(row: Row) -> float | None:
    """The published accuracy as a number, if there is one."""
    found = re.search(r"\d+(\.\d+)?", str(row["published"].get("accuracy", "")))
    return float(found[0]) if found else None


def figure(sections: Sequence[Section], path: Path) -> bool:
    """Plot the accuracy of every row that was run against the parameters of its replaced layers; return whether."""
    run = [(f"{name}: {rows[0]['net']}", [row for row in rows if row["runs"]]) for name, rows in sections]
    run = [(label, rows) for label, rows in run if rows]
    if not run:
        path.unlink(missing_ok=True)
        return False
    plt = report.pyplot()
    with plt.rc_context(report.STYLE):
        made, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
        for k, (label, rows) in enumerate(run):
            _scatter(axes, rows, f"C{k}", label)
        for marker, label in (("s", "dense"), ("o", "the paper's method"), ("x", "control")):
            axes.scatter([], [], color="grey", marker=marker, label=label)
        axes.scatter([], [], marker="*", facecolors="none", edgecolors="grey", s=70, label="published")
        axes.set(xscale="log", xlabel="parameters of the replaced layers", ylabel="test accuracy, %")
        axes.legend(fontsize=7, frameon=False, loc="lower right")
        report.save(made, path)
    return True


def _scatter(axes: Any, rows: Sequence[Row], colour: str, label: str) -> None:
    """The points of one network: a marker for each kind of row, and stars where the paper states an accuracy."""
    for kind, marker in (("dense", "s"), ("paper", "o"), ("control", "x")):
        points = [(max(row["replaced"], 1), report.mean(row["runs"])) for row in rows if row["kind"] == kind]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=22)
    stated = [(row["replaced"], value) for row in rows if (value := _stated(row)) is not None]
    if stated:
        axes.scatter(*zip(*stated, strict=True), marker="*", facecolors="none", edgecolors=colour, s=70)
    axes.scatter([], [], color=colour, label=label)


# -------------------------------------------------------------------------------------------------- not run


def not_run(waiting: Sequence[Waiting]) -> str:
    """The rows that nobody has started, with their parameters and the minutes they would take."""
    if not waiting:
        return "Every row has been started."
    head = ("paper", "network", "row", "parameters of the replaced layers", "published", "minutes", "from")
    lines = [
        [
            *(name, f"{row['net']} on {row['data']}", row["method"], f"{row['replaced']:,}"),
            *(_published(row), _minutes(cost), "measured" if cost.measured else "estimate"),
        ]
        for name, row, cost in waiting
    ]
    sure = sum(cost.total for *_, cost in waiting if cost.measured)
    whole = sum(cost.total for *_, cost in waiting if cost.total == cost.total)  # without nan
    text = (
        f"Rows that have not been started: {len(waiting)}. In full they take about {whole / 60:,.0f} hours of one "
        f"thread, {sure / 60:,.0f} of them measured. Minutes are those of all seeds ({SEEDS} where a run takes less "
        f"than {LONG:g} minutes, else one) and of the choice of a rate. `measured` comes from seconds per step of this "
        "network's rows in the same table. `estimate` comes from the multiplications of the dense network, forward "
        f"and twice as many backward, at {SPEED:.1e} a second."
    )
    return f"{text}\n\n{report.lines(head, lines, left=3)}"


def _published(row: Row) -> str:
    stated = row["published"]
    parts = [f"{stated['parameters']:,} parameters"] if "parameters" in stated else []
    parts += [f"{stated['accuracy']} %"] if "accuracy" in stated else []
    parts += [str(stated["factor"])] if "factor" in stated else []
    return ", ".join(parts)


def _minutes(cost: Cost) -> str:
    return f"{cost.total:,.0f}" if cost.total == cost.total else "unknown"
