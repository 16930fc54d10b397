"""Write rows to JSON, to a page of tables, and to plots. Rows of an earlier run stay until they are run again."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.papers.state import write_text
from benchmarks.papers.study import Row

__all__ = ["mean", "mean_and_deviation", "merge", "page", "plot", "pyplot", "read", "save", "started", "write"]

HEADS = (
    *("method", "parameters of the replaced layers", "published", "ratio", "of the network", "ratio"),
    *("accuracy, %", "published, %", "steps", "seconds"),
)
STYLE = {"svg.hashsalt": "tnc", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
"""Of all plots."""


def key(row: Row) -> tuple[str, str, str]:
    """What identifies a row: network, data set and method."""
    return row["net"], row["data"], row["method"]


def started(row: Row) -> bool:
    """Whether a row has runs, or one that is saved before its end."""
    return bool(row["runs"] or row.get("progress"))


def merge(held: Iterable[Row], counted: Sequence[Row], new: Iterable[Row]) -> list[Row]:
    """The rows of `counted`, in that order, each with its new runs, or else with its earlier runs.

    Numbers of parameters and published values are taken from `counted`. Earlier runs are dropped if the row has other
    numbers of parameters now, or if it is no longer in `counted`.

    Parameters
    ----------
    held : iterable of Row
        Rows of earlier runs.
    counted : sequence of Row
        Rows without runs, as the study is now.
    new : iterable of Row
        Rows that have just been run.
    """
    runs = {key(row): row for row in (*held, *new) if started(row)}
    merged = []
    for row in counted:
        run = runs.get(key(row), row)
        same = (run["replaced"], run["whole"]) == (row["replaced"], row["whole"])
        merged.append({**run, **row, "runs": run["runs"]} if same else row)
    return merged


def read(path: Path) -> list[Row]:
    """The rows of an earlier run, if there was one."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as JSON."""
    write_text(path, json.dumps({"rows": list(rows)}, indent=1, ensure_ascii=False) + "\n")


# --------------------------------------------------------------------------------------------------- tables


def mean_and_deviation(runs: Sequence[Row]) -> str:
    """Mean, sample deviation in per cent and number of seeds as ``98.41 ± 0.05 (3)``; ``not run`` without runs."""
    if not runs:
        return "not run"
    values = [100 * run["accuracy"] for run in runs]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


def mean(runs: Sequence[Row]) -> float:
    """Mean accuracy in per cent."""
    return statistics.fmean(100 * run["accuracy"] for run in runs)


def cells(row: Row) -> list[str]:
    """One line of a table."""
    published, runs = row["published"], row["runs"]
    replaced = f"{row['replaced']:,}"
    return [
        row["method"],
        replaced,
        _published(published.get("parameters")),
        _ratio(row["replaced"], row["dense_replaced"]),
        f"{row['whole']:,}",
        _factor(row),
        mean_and_deviation(runs),
        _published(published.get("accuracy")),
        _steps(row),
        f"{statistics.fmean(run['seconds'] for run in runs):.0f}" if runs else "",
    ]


def _steps(row: Row) -> str:
    """Steps that are done of those of the full schedule; of a run that goes on, those that are saved."""
    if progress := row.get("progress"):
        return f"{progress['steps']:,} of {progress['of']:,}, seed {progress['seed']} goes on"
    taken = [run["steps"] for run in row["runs"]]
    return f"{min(taken):,} of {row['full_steps']:,}" if any(taken) else ""


def _published(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.2g}" if part != whole else "1"


def _factor(row: Row) -> str:
    stated = row["published"].get("factor")
    return f"{row['dense_whole'] / row['whole']:.3g}×" + (f" (published {stated})" if stated else "")


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, one line per row."""
    return lines(HEADS, list(map(cells, rows)))


def lines(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` ones are aligned to the right."""
    rules = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rules, *rows))


def provenance(rows: Sequence[Row]) -> str:
    """Schedule, machine, versions and date of the runs. Rows that were run in the same way share a line."""
    run = [row for row in rows if row["runs"]]
    if not run:
        return "Nothing of this table has been run."
    said: dict[str, list[str]] = {}
    for row in run:
        said.setdefault(_schedule(row), []).append(row["method"])
    everything = len(said) == 1 and len(run) == len(rows)
    said_lines = [f"* {'All rows' if everything else ', '.join(names)}: {text}" for text, names in said.items()]
    rates = [f"{row['method']} {row['rate']:g}" for row in run if "chosen" in row["schedule"]]
    if rates:
        said_lines.append(f"* Rates chosen: {', '.join(rates)}.")
    if single := [row["method"] for row in run if row.get("one_seed")]:
        said_lines.append(f"* One seed, as a run takes 40 minutes or more: {', '.join(single)}.")
    return "\n".join(said_lines)


def _schedule(row: Row) -> str:
    untrained = all(run["steps"] == 0 for run in row["runs"])
    if untrained:
        how = "scored as it was given, not trained here"
    else:
        how = row["schedule"]
        taken = min(run["steps"] for run in row["runs"])
        if taken < row["full_steps"]:
            share = taken / row["full_steps"]
            how += f"; **shortened schedule**: {taken:,} of {row['full_steps']:,} steps ({share:.0%})"
            # Old rows were made by a command that shortened schedules to a time.
            how += f", budget {minutes} minutes" if (minutes := row.get("budget_minutes")) else ""
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    return f"{how}. {row['date']}, {row['machine']}, {versions}."


def page(
    title: str, intro: str, rows: Sequence[Row], notes: dict[tuple[str, str], str], plots: Path, prefix: str
) -> str:
    """The whole page in Markdown.

    Parameters
    ----------
    title, intro : str
    rows : sequence of Row
    notes : dict of (str, str) to str
        A remark for each network and data set.
    plots : Path
        Folder of the plots; ``prefix-net-data.svg`` is shown if it is there.
    prefix : str
    """
    parts = [f"# {title}", intro]
    for (net, data), group in groupby(rows, key=lambda row: (row["net"], row["data"])):
        section = [row for row in group if started(row)]  # the index lists the others
        if not section:
            continue
        parts += [f"## {net} on {data}", notes.get((net, data), ""), table(section), provenance(section)]
        parts += [f"* {row['method']}: {row['note']}" for row in section if row["note"]]
        if (plots / (name := f"{prefix}-{plot_name(net, data)}")).is_file():
            parts.append(f"![Accuracy against the parameters of the replaced layers]({name})")
    return "\n\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------------------------------------------- plots


def plot_name(net: str, data: str) -> str:
    """The name of the file with the plot of a section."""
    return f"{net}-{data}.svg"


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Plot accuracy against the parameters of the replaced layers, if two rows or more were run; return whether."""
    run = [row for row in rows if row["runs"]]
    if len(run) < 2:
        path.unlink(missing_ok=True)
        return False
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        for kind, marker, colour in (("dense", "s", "black"), ("paper", "o", "C0"), ("control", "x", "C1")):
            for row in (row for row in run if row["kind"] == kind):
                values = [100 * one["accuracy"] for one in row["runs"]]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                point = max(row["replaced"], 1), statistics.fmean(values)
                axes.errorbar(*point, yerr=spread, fmt=marker, color=colour, capsize=3)
                axes.annotate(row["method"], point, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel="parameters of the replaced layers", ylabel="test accuracy, %")
        save(figure, path)
    return True


def pyplot() -> Any:
    """The module that plots, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG and close it; the same figure gives the same file."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    write_text(path, text.getvalue())
