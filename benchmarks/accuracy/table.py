"""The table and the picture, from the state file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.accuracy.networks import SUBJECTS
from benchmarks.accuracy.rows import DENSE, ROWS
from benchmarks.accuracy.sections import sections
from benchmarks.accuracy.state import Key, State
from benchmarks.papers.study import stamp
from benchmarks.plots import panels

__all__ = ["page", "picture"]

COLOURS = ("#e69f00", "#cc79a7", "#999999", "#d55e00", "#56b4e9", "#0072b2", "#009e73", "#000000", "#f0e442")
Results = dict[Key, dict[str, Any]]


def head(results: Results) -> str:
    """Days, machines and versions of the results."""
    days = sorted({one["date"] for one in results.values()})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    places = sorted({_place(one) for one in results.values()})
    return f"{when}; {'; '.join(places)}."


def _place(result: dict[str, Any]) -> str:
    """Machine and versions of one result. The first results have their threads only: they were made on this machine."""
    if "machine" not in result:
        result = stamp() | {"machine": f"{result['threads']} CPU threads"}
    return ", ".join([result["machine"], *(f"{name} {number}" for name, number in result["versions"].items())])


def names(results: Results, network: str) -> list[str]:
    """The rows of one network, in the order of `ROWS`; others last."""
    held = {key.row for key in results if key.network == network} - {DENSE}
    order = list(ROWS)
    return sorted(held, key=lambda name: (order.index(name) if name in order else len(order), name))


def cell(result: dict[str, Any] | None) -> str:
    """Score, and in brackets the % that is kept."""
    if result is None:
        return ""
    if "error" in result:
        return "fails"
    score = "∞" if result["score"] is None else f"{result['score']:.4g}"
    return f"{score} ({100 * result['kept']:.1f})"


def best(found: dict[str, dict[str, Any]], better: str) -> str | None:
    """The row with the best score of one column."""
    scores = {name: one["score"] for name, one in found.items() if one.get("score") is not None}
    choose = max if better == "higher" else min
    return choose(scores, key=scores.__getitem__) if scores else None


def of_network(results: Results, network: str) -> list[str]:
    """The table of one network: a line per row, a column per share."""
    better = SUBJECTS[network].better
    shares = sorted({key.share for key in results if key.network == network and key.row != DENSE}, reverse=True)
    columns = {share: {key.row: one for key, one in results.items() if key[:2] == (network, share)} for share in shares}
    bests = {share: best(column, better) for share, column in columns.items()}
    lines = [
        *about(results, network),
        "| row | " + " | ".join(f"{share:.0%}" for share in shares) + " | seconds |",
        "| --- " + "| ---: " * (len(shares) + 1) + "|",
    ]
    return [*lines, *(line(name, columns, bests) for name in names(results, network)), ""]


def line(name: str, columns: dict[float, dict[str, dict[str, Any]]], bests: dict[float, str | None]) -> str:
    """One row: its cells and the seconds of its longest fit."""
    found = {share: column.get(name) for share, column in columns.items()}
    shown = [f"**{cell(one)}**" if bests[share] == name else cell(one) for share, one in found.items()]
    seconds = max((one["seconds"] for one in found.values() if one and "seconds" in one), default=None)
    return " | ".join([f"| {name}", *shown, "|" if seconds is None else f"{seconds:.0f} |"])


def about(results: Results, network: str) -> list[str]:
    """What is measured, on what, and the dense network's score."""
    subject = SUBJECTS[network]
    held = [one for key, one in results.items() if key.network == network]
    limits = sorted({one["limit"] or 0 for one in held})
    limit = " or ".join(f"the first {n:,} test samples" if n else "all test samples" for n in limits)
    samples = " or ".join(str(n) for n in sorted({one["samples"] for one in held}))
    told = cell(results.get(Key(network, 1.0, DENSE))).partition(" ")[0] or "not measured"
    published = f" (published: {subject.dense:.4g})" if subject.dense else ""
    return [
        f"## {network}",
        "",
        f"{subject.unit} ({subject.better} is better), {limit}, {samples} calibration samples. Dense: {told}"
        f"{published}. Compressed: `{subject.weights}`.",
        "",
    ]


def page(state: State, shown: str | None = None) -> str:
    """The whole report in Markdown."""
    results = state.results
    ordered = [name for name in SUBJECTS if any(key.network == name for key in results)]
    text = [
        "# Accuracy after compression, without any training",
        "",
        head(results),
        "",
        "Columns are the share of the compressed weights' parameters that was allowed; in brackets what was kept, in "
        '%. Bold: best of its column. Seconds: the longest fit, statistics included. Rows "refined": gradient steps on '
        "the inputs that the notes count, without labels. `python -m benchmarks.accuracy` makes this page.",
        "",
        *([f"![Score against kept share]({shown})", ""] if shown else []),
        *(line for name in ordered for line in of_network(results, name)),
        *sections(state.path.parent),
        *notes(results),
    ]
    return "\n".join(text).rstrip() + "\n"


def notes(results: Results) -> Iterable[str]:
    """Remarks and errors of the rows, once each."""
    lines = []
    for key, one in results.items():
        if text := one.get("note") or one.get("error"):
            lines.append(f"* {key.network}, {key.row} at {key.share:.0%}: {text}")
    return ["## Notes", "", *lines] if lines else []


def picture(state: State, path: Path) -> None:
    """Score against kept share as SVG: a panel per network, a line per row."""
    from matplotlib.lines import Line2D

    results = state.results
    compressed = {key.network for key in results if key.row != DENSE}
    networks = [name for name in SUBJECTS if name in compressed]
    if not networks:
        return
    shown = list(dict.fromkeys(row for name in networks for row in names(results, name)))
    colours = {row: COLOURS[k % len(COLOURS)] for k, row in enumerate(shown)}
    columns = min(3, len(networks))
    lines = -(-len(networks) // columns)
    size = (1 + 3.2 * columns, 0.9 + 2.4 * lines)
    with panels(path, len(networks), lines, columns, size) as (figure, axes):
        for panel, network in zip(axes.flat, networks, strict=False):
            _panel(panel, results, network, colours)
        entries = [Line2D([], [], color=colour, marker="o", markersize=3) for colour in colours.values()]
        figure.legend(entries, list(colours), loc="outside upper center", ncols=4, frameon=False)


def _panel(panel: Any, results: Results, network: str, colours: dict[str, str]) -> None:
    subject = SUBJECTS[network]
    for row in names(results, network):
        held = [one for key, one in results.items() if (key.network, key.row) == (network, row)]
        points = sorted((100 * one["kept"], one["score"]) for one in held if one.get("score") is not None)
        if points:
            panel.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1, color=colours[row], label=row)
    dense = results.get(Key(network, 1.0, DENSE), {}).get("score")
    if dense is not None:
        panel.axhline(dense, color="0.6", linewidth=1)
    panel.set(title=network, xlabel="kept, %", ylabel=subject.unit)
    if subject.better == "lower":
        panel.set_yscale("log")
