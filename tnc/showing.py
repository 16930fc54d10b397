"""Reports for people: tables for terminals and notebooks, a caption in plain words, and a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from tnc.draw.shapes import figure
from tnc.errors import printable

if TYPE_CHECKING:
    from tnc.report import Candidate, Report, Row

__all__ = ["Column", "caption", "columns", "html", "picture", "plain", "table"]


class Column(NamedTuple):
    """A column of a table.

    Attributes
    ----------
    heading : str
    cells : list of str
    numeric : bool
        Whether to align it to the right.
    """

    heading: str
    cells: list[str]
    numeric: bool = False


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a report. Those that would be empty in all rows are left out."""
    found = [Column(heading, [cell(row) for row in rows], heading in _NUMERIC) for heading, cell in _CELLS.items()]
    return [column for column in found if any(column.cells) or column.heading not in _OPTIONAL]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _note(row: Row) -> str:
    """Why a weight stayed dense, what was asked for, and what else was considered."""
    clipped = row.nominal > row.after and row.method != "dense"
    others = [c for c in row.candidates if c.method != row.method and c.predicted is not None]
    worse = ", ".join(_rival(c, row.after) for c in sorted(others, key=lambda c: c.predicted or 0.0))
    notes = [row.note, f"as asked {row.nominal:,}" if clipped else "", f"instead of {worse}" if worse else ""]
    return "; ".join(filter(None, notes))


_CELLS: dict[str, Callable[[Row], str]] = {
    "name": lambda row: row.name,
    "method": lambda row: row.method,
    "shape": lambda row: "x".join(map(str, row.shape)),
    "ranks": lambda row: " ".join(map(str, row.ranks)),
    "before": lambda row: f"{row.before:,}",
    "after": lambda row: f"{row.after:,}",
    "error": lambda row: _number(row.error, ".4f"),
    "output error": lambda row: _number(row.output_error, ".4f"),
    "predicted": lambda row: _number(row.predicted, ".2e"),
    "seconds": lambda row: f"{row.seconds:.2f}",
    "note": _note,
}
"""The text of a cell, by the heading of its column."""

_NUMERIC = ("before", "after", "error", "output error", "predicted", "seconds")
_OPTIONAL = ("output error", "predicted")


def _rival(candidate: Candidate, size: int) -> str:
    """A candidate that was not chosen. Its size is said where it is another one."""
    where = "" if 0.9 * size <= candidate.size <= size else f" at {candidate.size:,}"
    return f"{candidate.method} {candidate.predicted:.2e}{where}"


def caption(report: Report) -> str:
    """The totals, and what was done with calibration inputs."""
    matched = f"{report.after:,} of {report.before:,} matched parameters kept ({report.ratio:.2%})"
    parts = [matched, f"{report.total_after:,} of {report.total:,} in all"]
    if report.bytes and report.before:
        before, after = report.bytes
        parts.append(f"{decimal(after)} of {decimal(before)}")
    if report.operations:
        before, after = report.operations
        parts.append(f"{after:,} of {before:,} multiplications a sample")
    if kept := sum(row.kept for row in report.rows):
        parts.append(f"evaluation may keep {decimal(kept)} of rebuilt weights")
    lines = ["; ".join(parts), _calibration(report.calibration)]
    return "\n".join(filter(None, lines))


def _calibration(facts: Mapping[str, Any]) -> str:
    """What a calibrated compression did, in words."""
    distances = facts.get("distances", {})
    known = distances if isinstance(distances, Mapping) else {}
    parts = [f"{facts['samples']} inputs"] if "samples" in facts else []
    if "distance" in facts:
        parts.append(
            f"outputs are {facts['distance']:.3g} away from the dense model's on {facts.get('held_out', '?')} held-out "
            "inputs"
        )
    objective = facts.get("objective", "")
    tried = {name: value for name, value in known.items() if name not in _STEPS}
    if objective in tried:
        rest = [f"{name} {value:.3g}" for name, value in tried.items() if name != objective]
        parts.append(f"objective {objective} ({'; '.join([f'{tried[objective]:.3g}', *rest])})")
    elif objective:
        parts.append(f"predicted by {objective}")
    for name, words in _STEPS.items():
        if name in known:
            parts.append(f"{words}: {'yes' if facts.get(name) else 'no'} ({known[name]:.3g})")
    if facts.get("unreached"):
        parts.append(f"no input reaches {facts['unreached']}: dense")
    return "; ".join(parts)


_STEPS = {"shift": "fitted again in order", "recalibrated": "batch normalization re-estimated"}
"""Words for the steps that are tried and kept only if they help, by name. The facts have under this name whether the
step was kept, and the distances have what it gave."""


def table(found: Sequence[Column], words: str = "", **options: Any) -> Table:
    """A rich table with a caption. `options` are those of ``rich.table.Table``."""
    below = Text("\n".join(map(printable, words.splitlines()))) if words else None
    made = Table(caption=below, caption_justify="left", **options)
    for column in found:
        made.add_column(column.heading, justify="right" if column.numeric else "left", overflow="fold")
    for cells in zip(*(column.cells for column in found), strict=True):
        made.add_row(*(Text(printable(cell)) for cell in cells))  # names may look like markup
    return made


def plain(made: Table) -> str:
    """A table as text."""
    console = Console(width=140, record=True, file=io.StringIO())  # the file is not used: rich exports its record
    console.print(made)
    return console.export_text()


def html(found: Sequence[Column], words: str) -> str:
    """A table as HTML: plain, without styles or scripts of its own."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(printable(cell))}</{tag}>" for cell in cells) + "</tr>"

    head = row("th", [column.heading for column in found])
    body = "".join(row("td", cells) for cells in zip(*(column.cells for column in found), strict=True))
    below = "".join(f"<p>{escape(printable(line))}</p>" for line in words.splitlines())
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{below}"


def picture(rows: Sequence[Row], path: str | Path) -> None:
    """Draw parameters before and after, and the error, of every weight.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    drawn = figure(9, 1.5 + 0.3 * len(rows), layout="constrained")
    sizes, errors = drawn.subplots(1, 2, sharey=True)
    heights = range(len(rows))
    sizes.barh(heights, [row.before for row in rows], color="0.85", label="dense")
    sizes.barh(heights, [row.after for row in rows], color="tab:blue", height=0.5, label="kept")
    sizes.set(xscale="log", xlabel="parameters", yticks=list(heights), yticklabels=[row.name for row in rows])
    sizes.invert_yaxis()
    sizes.legend(loc="lower left", fontsize="small")
    errors.barh(heights, [row.error or 0 for row in rows], color="tab:orange", height=0.5)
    errors.set(xlabel="relative error", xlim=(0, 1))
    drawn.savefig(path)
