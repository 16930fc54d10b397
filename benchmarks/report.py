"""From the grid's JSON to the page and the plots that the documentation shows.

``python -m benchmarks.report benchmarks/results/layers*.json`` takes the files that pytest-benchmark wrote for
`test_layers`, whole or in parts (of a cell measured twice the last counts), and writes ``docs/benchmarks``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks.plots import strips

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
AUTO, EXECUTIONS = "tnc auto", ("tnc dense", "tnc factorized")
COLUMNS = ("dense", *EXECUTIONS, AUTO, "tltorch factorized", "tltorch reconstructed", "tednet")
MODES = {"inference": "Inference", "training": "Forward and backward"}
LIMIT = {"inference": 1.05, "training": 1.2}
GOAL = {"inference": 3.0, "training": 2.5}
LEAST_FLOPS, FASTER = 0.25, 0.5
REGRET, WITHIN = 1.15, 0.9
HELD = 1.2


@dataclass(frozen=True)
class Cell:
    """What one test measured."""

    layer: str
    format: str
    percent: int
    batch: int
    mode: str
    seconds: dict[str, list[float]]
    missing: dict[str, str]
    parameters: dict[str, int]
    kept_bytes: dict[str, int]
    flops: dict[str, int | None]
    saved_bytes: dict[str, int]
    pattern: str
    ranks: list[int]

    @property
    def key(self) -> tuple[Any, ...]:
        return self.layer, self.format, self.percent, self.batch, self.mode

    def __str__(self) -> str:
        return f"{self.layer}, {self.format}, {self.percent} %, batch {self.batch}, {self.mode}"

    def ratio(self, name: str, to: str = "dense") -> float:
        """Time of an alternative relative to another: the median over rounds."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=False))

    @property
    def auto(self) -> float:
        return self.ratio(AUTO)

    @property
    def over(self) -> float:
        """By how much `auto` misses its limit against dense; at most 1 where it holds."""
        return self.auto / LIMIT[self.mode]

    @property
    def light(self) -> bool:
        """Whether the plan through the cores needs under a quarter of the dense arithmetic."""
        dense, planned = self.flops["dense"], self.flops["planned"]
        return bool(dense) and planned is not None and planned < LEAST_FLOPS * dense

    @property
    def heavy(self) -> bool:
        """Whether every plan of both passes needs more arithmetic than the limit allows time for."""
        needed = self.flops.get("training")
        return self.mode == "training" and bool(needed) and needed > LIMIT["training"] * 3 * self.flops["dense"]

    @property
    def others(self) -> dict[str, float]:
        """Time of other libraries relative to `auto`."""
        return {name: self.ratio(name, AUTO) for name in self.seconds if not name.startswith(("dense", "tnc"))}

    def held(self, name: str) -> float:
        """What an alternative holds for the backward pass, parameters left out, relative to the dense layer."""
        return self.saved_bytes[name] / self.saved_bytes["dense"]

    @property
    def regret(self) -> float:
        """Time of `auto` relative to the faster of the executions it chooses from."""
        return self.ratio(AUTO, min(EXECUTIONS, key=lambda name: median(self.seconds[name])))


def load(paths: Iterable[Path]) -> tuple[list[Cell], dict[str, Any]]:
    """Cells in the order of the grid's files, and the machine, versions and date of the last file."""
    cells: dict[tuple[Any, ...], Cell] = {}
    about: dict[str, Any] = {}
    for path in paths:
        found = json.loads(path.read_text())
        for entry in found["benchmarks"]:
            cell = Cell(**entry["extra_info"])
            cells[cell.key] = cell
        about = {**found["machine_info"], "date": found["datetime"][:10]}
    if not cells:
        raise SystemExit("no cell in these files: run pytest benchmarks/test_layers.py --benchmark-json=FILE first")
    return list(cells.values()), about


# ---------------------------------------------------------------------- text


def head(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    machine = f"{about['cpu']['brand_raw']}, {about['threads']} threads, Python {about['python_version']}"
    return f"{about['date']}, {machine}, {versions}."


def share(part: list[Cell], whole: list[Cell]) -> str:
    return f"{len(part)} of {len(whole)} ({len(part) / len(whole):.0%})" if whole else "none of these was measured"


def numbers(cells: list[Cell]) -> list[str]:
    """The goals, and what was reached."""
    lines = ["| goal | reached |", "| --- | --- |"]
    for mode, title in MODES.items():
        here = [cell for cell in cells if cell.mode == mode]
        lines.append(f"| {title}: `auto` at most {LIMIT[mode]} × dense in every cell | {share(within(here), here)} |")
    light = [cell for cell in cells if cell.light]
    fast = [cell for cell in light if cell.auto <= FASTER]
    lines.append(f"| twice as fast as dense where the plan needs under a quarter of its FLOPs | {share(fast, light)} |")
    for mode in MODES:
        lines += rivals([cell for cell in cells if cell.mode == mode and cell.others], mode)
    close = [cell for cell in cells if cell.regret <= REGRET]
    lines.append(f"| `auto` within 15 % of the best execution in {WITHIN:.0%} of cells | {share(close, cells)} |")
    return lines


def within(cells: list[Cell]) -> list[Cell]:
    """The cells in which `auto` keeps its limit against dense."""
    return [cell for cell in cells if cell.over <= 1]


def rivals(cells: list[Cell], mode: str) -> list[str]:
    """The goals beside other libraries, from the cells of one mode in which there are some."""
    if not cells:
        return []
    best = [min(cell.others.values()) for cell in cells]
    ahead = [cell for cell, ratio in zip(cells, best, strict=True) if ratio >= 1]
    goal = f"{GOAL[mode]} × faster than the best other library (geometric mean)"
    return [
        f"| {MODES[mode]}: {goal} | {geometric_mean(best):.2f} × |",
        f"| {MODES[mode]}: slower than another library in no cell | not slower in {share(ahead, cells)} |",
    ]


def worst(cells: list[Cell], by: Callable[[Cell], float], text: str, most: int = 12) -> list[str]:
    """The cells in which a number is furthest above 1."""
    found = sorted((cell for cell in cells if by(cell) > 1), key=by, reverse=True)
    if not found:
        return [f"{text}: nowhere.", ""]
    lines = [f"{text} in {len(found)} of {len(cells)} cells; the worst:", "", "| cell | factor |", "| --- | --- |"]
    return [*lines, *(f"| {cell} | {by(cell):.2f} |" for cell in found[:most]), ""]


def losses(cells: list[Cell]) -> list[str]:
    compared = [cell for cell in cells if cell.others]
    kept = [cell for cell in cells if cell.kept_bytes[AUTO.split()[1]]]
    most = max((cell.kept_bytes["auto"] for cell in kept), default=0)
    return [
        *worst(cells, lambda cell: cell.over, "`auto` misses its limit against dense (by this factor)"),
        *worst(compared, lambda cell: 1 / min(cell.others.values()), "Another library is faster than `auto`"),
        *worst(cells, lambda cell: cell.regret / REGRET, "The planner chose worse than 15 % from the best execution"),
        *excuses([cell for cell in cells if cell.mode == "training" and cell.over > 1]),
        *memory([cell for cell in cells if cell.mode == "training"]),
        f"In evaluation `auto` keeps a rebuilt weight in {len(kept)} cells (of an embedding, the rows asked for), at "
        f"most {most / 2**20:.1f} MiB; `factorized` keeps none.",
        "",
    ]


def excuses(missed: list[Cell]) -> list[str]:
    """What the cells have in common whose training is too slow."""
    heavy = [cell for cell in missed if cell.heavy]
    single = [cell for cell in missed if not cell.heavy and cell.batch == 1]
    rest = len(missed) - len(heavy) - len(single)
    return [
        f"Forward and backward are too slow in {len(missed)} cells: in {len(heavy)} of them every plan needs more than "
        f"{LIMIT['training']} × the dense layer's multiplications, recomputation left out; {len(single)} others have "
        f"a batch of one, where steps cost more than what they compute; {rest} are left.",
        "",
    ]


def memory(cells: list[Cell]) -> list[str]:
    """What the layers hold for the backward pass, and those that are faster than ours."""
    within = [cell for cell in cells if cell.held(AUTO) <= HELD]
    best = [(cell, min(cell.others, key=cell.others.__getitem__)) for cell in cells if cell.others]
    factors = [cell.held(name) for cell, name in best if cell.others[name] < 1]
    lines = [
        f"For the backward pass `auto` holds at most {HELD} × the activations of the dense layer in "
        f"{share(within, cells)} cells; in the others the rebuilt kernel of a convolution, which stands for the dense "
        "layer's weight.",
    ]
    if factors:
        lines.append(
            f"The libraries that are faster in {len(factors)} cells hold {median(factors):.3g} × the dense activations "
            f"there (median; at least {min(factors):.3g} ×)."
        )
    return [*lines, ""]


def row(cell: Cell) -> str:
    shown = []
    for name in COLUMNS[1:]:
        if name in cell.seconds:
            number = f"{cell.ratio(name):.2f}"
            shown.append(f"**{number}**" if name == AUTO and cell.over > 1 else number)
        else:
            reason = cell.missing.get(name) or cell.missing.get(name.split()[0], "does not offer this format")
            shown.append("–" if reason == "does not offer this format" else "fails")
    label = [cell.format, f"{cell.percent} %", str(cell.batch), f"{1e3 * median(cell.seconds['dense']):.3g}"]
    return f"| {' | '.join([*label, *shown])} |"


def tables(cells: list[Cell]) -> list[str]:
    lines: list[str] = []
    for layer in dict.fromkeys(cell.layer for cell in cells):
        for mode, title in MODES.items():
            here = [cell for cell in cells if (cell.layer, cell.mode) == (layer, mode)]
            if here:
                titles = ["format", "kept", "batch", "dense, ms", *COLUMNS[1:]]
                lines += [
                    f"### {layer}: {title.lower()}",
                    "",
                    f"| {' | '.join(titles)} |",
                    "| --- " * len(titles) + "|",
                ]
                lines += [*map(row, here), ""]
    return lines


def reasons(cells: list[Cell]) -> list[str]:
    """What failed and why, once each; and parameter counts that differ from ours."""
    found = {
        f"{name} ({cell.format}): {why}" for cell in cells for name, why in cell.missing.items() if "offer" not in why
    }
    for cell in cells:
        for name in cell.seconds:
            more = cell.parameters[name] - cell.parameters[AUTO]
            if more and name != "dense":
                found.add(
                    f"{name} ({cell.layer}, {cell.format}): {more:+d} parameters, its identities on the kernel's axes"
                )
    return [f"- {line}" for line in sorted(found)]


def page(cells: list[Cell], about: dict[str, Any]) -> str:
    figures = [f"![{title}: time relative to dense]({mode}.svg)" for mode, title in MODES.items()]
    return "\n".join([
        "# Layers against dense ones and other libraries", "", head(about), "",
        f"{len(cells)} cells. Times are relative to torch's dense layer in the same round, median over rounds: below 1 "
        "is faster. A dash: the library does not offer the format. Bold: `auto` misses its limit.", "",
        "## Goals", "", *numbers(cells), "", "## Where we lose", "", *losses(cells),
        "## Plots", "", *figures, "", "## All cells", "", *tables(cells), "## Notes", "", *reasons(cells), "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="what --benchmark-json wrote")
    parser.add_argument("--to", type=Path, default=DOCS, help="folder of the page and the plots")
    given = parser.parse_args()
    cells, about = load(given.files)
    given.to.mkdir(parents=True, exist_ok=True)
    (given.to / "layers.md").write_text(page(cells, about))
    for mode in MODES:
        strips([cell for cell in cells if cell.mode == mode], given.to / f"{mode}.svg")
    print("\n".join([*numbers(cells), "", *losses(cells)]))


if __name__ == "__main__":
    main()
